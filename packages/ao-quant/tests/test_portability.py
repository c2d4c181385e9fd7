"""Every config on a GPU: same codes and scales as on a CPU, there and back, and alike results.

Run with a CPU in both places, the tests show that they work.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from every_config import CONFIGS, EACH, ON
from torch import Tensor, nn

from ao_core import checkpoint
from ao_core.tensor import QTensor
from ao_quant import quantize_

N, K = 96, 160


def quantized(name: str, device: str, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    """The same weight on every device, quantized there."""
    torch.manual_seed(0)
    layer = nn.Linear(K, N).to(dtype).to(device)
    quantize_(layer, CONFIGS[name][0], lambda module, fqn: True)
    return layer


def same(a: Tensor, b: Tensor) -> bool:
    """The same format, codes and scales, wherever they are."""
    assert isinstance(a, QTensor) and isinstance(b, QTensor)
    return torch.equal(a.detach().cpu(), b.detach().cpu())


@EACH
@ON
def test_weights_quantized_there_are_those_quantized_here(name: str, device: str) -> None:
    here, there = quantized(name, "cpu"), quantized(name, device)
    sums = getattr(CONFIGS[name][0], "algorithm", "") == "hqq" or name == "int1"
    if sums:  # of a group: in another order there
        exact = here.weight.dequantize().float()
        apart = (there.weight.dequantize().cpu().float() - exact).norm()
        assert apart <= 0.02 * exact.norm()
    else:
        assert same(there.weight, here.weight)


@EACH
@ON
def test_there_and_back(name: str, device: str, tmp_path: Path) -> None:
    """By moving, and by checkpoints made on either side."""
    layer = quantized(name, "cpu")
    assert same(quantized(name, "cpu").to(device).cpu().weight, layer.weight)
    checkpoint.save(layer, tmp_path / "here.safetensors")
    there = nn.Linear(K, N).bfloat16().to(device)
    checkpoint.load(tmp_path / "here.safetensors", model=there)
    there.to(device)
    assert there.weight.device.type == device and same(there.weight, layer.weight)
    checkpoint.save(there, tmp_path / "there.safetensors")
    again = nn.Linear(K, N).bfloat16()
    checkpoint.load(tmp_path / "there.safetensors", model=again)
    again.cpu()
    assert again.weight.device.type == "cpu" and same(again.weight, layer.weight)
    assert torch.equal(again.bias, layer.bias)
    x = torch.randn(5, K).bfloat16()
    assert torch.equal(again(x), layer(x))


@EACH
@ON
@pytest.mark.parametrize("tokens", [1, 40])
def test_results_are_alike(name: str, device: str, tokens: int) -> None:
    layer = quantized(name, "cpu")
    x = torch.randn(tokens, K).bfloat16()
    y = layer(x)
    found = layer.to(device)(x.to(device)).cpu()
    assert (found - y).float().norm() <= 2**-7 * y.float().norm()


@EACH
@ON
def test_a_low_rank_adapter_trains_there(name: str, device: str) -> None:
    """Gradients pass through the quantized weight as they do on a CPU."""
    grads = []
    for where in ("cpu", device):
        torch.manual_seed(1)
        down = torch.randn(8, K).mul(0.1).to(where).requires_grad_()
        up = torch.randn(N, 8).to(where).requires_grad_()
        first = torch.eye(K).to(where).requires_grad_()
        base = quantized(name, "cpu", torch.float32).to(where)
        h = torch.randn(7, K).to(where) @ first
        (base(h) + F.linear(F.linear(h, down), up)).square().mean().backward()
        assert base.weight.grad is None
        grads.append([t.grad.cpu() for t in (down, up, first) if t.grad is not None])
    for ours, theirs in zip(*grads, strict=True):
        assert ours.abs().sum() > 0 and (theirs - ours).norm() <= 0.01 * ours.norm()
