"""Recomputation: the same bits, and with the policy no input is cast again."""

from __future__ import annotations

import pytest
import torch
from layers import CHECKPOINTS, EMULATED, computed, counted, emulated, layer
from torch import Tensor, nn

from ao_float8 import Float8LinearConfig


class Block(nn.Module):
    """Layers that share an input, and one behind them."""

    def __init__(self, config: Float8LinearConfig) -> None:
        super().__init__()
        self.gate, self.up = layer(32, 64, config), layer(32, 64, config)
        self.down = layer(64, 32, config)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return x + self.down(torch.sigmoid(self.gate(h)) * self.up(h))


class Net(nn.Module):
    def __init__(self, config: Float8LinearConfig, how: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(2))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = CHECKPOINTS[self.how](block, x)
        return x


def grads(how: str, config: Float8LinearConfig) -> tuple[list[Tensor], int]:
    """Gradients, and casts of inputs."""
    torch.manual_seed(0)
    net, x = Net(config, how), torch.randn(24, 32, requires_grad=True)
    with computed() as casts:
        y = net(x)
        forward = len(casts)
        y.square().sum().backward()
    n_inputs = sum(shape[0] == 24 for shape in casts[:forward])  # weights have 32 or 64 rows
    # in backward: of 6 gradients, and of inputs in what is recomputed
    again = sum(shape[0] == 24 for shape in casts[forward:]) - 6
    return [y.detach(), x.grad, *(p.grad for p in net.parameters())], n_inputs + again


@pytest.mark.parametrize("recipe", EMULATED)
@pytest.mark.parametrize("how", ["reentrant", "plain", "selective"])
def test_bits_are_those_without(recipe: str, how: str) -> None:
    wanted, n_casts = grads("", EMULATED[recipe])
    found, n_again = grads(how, EMULATED[recipe])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    assert n_casts == 4
    assert n_again == (4 if how == "selective" else 8)


@pytest.mark.parametrize("how", ["reentrant", "plain", "selective"])
@pytest.mark.parametrize("cache", ["step", "scale"])
def test_no_weight_is_cast_again(how: str, cache: str) -> None:
    """What is kept of a weight serves what is recomputed, and the bits are the same."""
    wanted, _ = grads("", EMULATED["tensorwise"])
    torch.manual_seed(0)
    config = emulated(weight_cache=cache)
    net, x = Net(config, how), torch.randn(24, 32, requires_grad=True)
    with counted() as casts:
        y = net(x)
        y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in net.parameters())]
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    if cache == "step":
        assert sum(is_weight for _, is_weight in casts) == 6  # each of them once


@pytest.mark.parametrize("how", ["plain", "selective"])
def test_compiled(how: str) -> None:
    torch.manual_seed(0)
    net, x = Net(EMULATED["tensorwise"], how), torch.randn(24, 32)
    results = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        inputs = x.clone().requires_grad_()
        run(inputs).square().sum().backward()
        results.append([inputs.grad, *(p.grad for p in net.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
