"""Lion8bit: the equation, its state, and what it shares with the others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from ao_optim import Lion8bit
from ao_optim.record import read_moment


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s).to(dtype)) for s in ((64, 80), (7,), (5000,))]


def gradients(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def momentum(optimizer: Lion8bit, p: Tensor) -> Tensor:
    layout = optimizer._layout_of(p, optimizer.param_groups[0])
    return read_moment(optimizer.state[p], "exp_avg", layout).clone()


@pytest.mark.parametrize("bits", [8, 4, "fp8", 32])
@pytest.mark.parametrize("maximize", [False, True])
def test_steps_in_float64(bits: int | str, maximize: bool) -> None:
    """From the stored momentum: the parameter within float32's rounding, the sign where it is not
    within rounding of zero; the momentum is the exact one, quantized."""
    params = parameters()
    optimizer = Lion8bit(params, lr=0.01, weight_decay=0.1, state_bits=bits, maximize=maximize)
    for seed in range(4):
        gradients(params, seed)
        before = [p.detach().double() for p in params]
        old = [momentum(optimizer, p).double() if seed else torch.zeros(p.shape) for p in params]
        optimizer.step()
        for p, x, m in zip(params, before, old, strict=True):
            g = p.grad.double() * (-1 if maximize else 1)
            mixed = 0.9 * m + 0.1 * g
            expected = x * (1 - 0.01 * 0.1) - 0.01 * mixed.sign()
            sure = mixed.abs() > 1e-6
            torch.testing.assert_close(p.double()[sure], expected[sure], rtol=1e-6, atol=1e-7)
            moved = 0.99 * m + 0.01 * g
            bound = {8: 0.016, 4: 0.182, "fp8": 0.07, 32: 1e-6}[32 if p.numel() < 4096 else bits]
            assert (momentum(optimizer, p) - moved).abs().max() <= bound * moved.abs().max()


def test_state_dict_continues_bit_for_bit() -> None:
    params = parameters(torch.bfloat16)
    optimizer = Lion8bit(params, lr=0.01, bf16_stochastic_round=True, seed=3)
    for seed in range(2):
        gradients(params, seed)
        optimizer.step()
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Lion8bit(others, lr=0.5, bf16_stochastic_round=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (7, 8):
        gradients(params, seed)
        gradients(others, seed)
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg_codes", "exp_avg_scale", "shape"}


def test_bytes() -> None:
    p = torch.nn.Parameter(torch.zeros(1 << 16))
    p.grad = torch.ones_like(p)
    optimizer = Lion8bit([p])
    optimizer.step()
    record = optimizer.state[p]
    assert sum(x.nbytes for x in record.values()) / p.numel() < 1.02
    assert torch.equal(p.detach(), torch.full_like(p, -1e-4))


def test_what_is_refused() -> None:
    params = parameters()
    with pytest.raises(ValueError, match="betas are two numbers"):
        Lion8bit(params, betas=(0.9, 1.0))
    optimizer = Lion8bit(params)
    gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["state_bits"] = 4
    with pytest.raises(ValueError, match="state_bits, block_size"):
        optimizer.step()
    state = Lion8bit(parameters()).state_dict()
    from ao_optim import AdamW8bit

    with pytest.raises(ValueError, match="the state of Lion8bit, this is AdamW8bit"):
        AdamW8bit(parameters()).load_state_dict(state)


def test_it_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    target = 0.3 * x @ torch.randn(64, 64)
    layer = torch.nn.Linear(64, 64)
    optimizer = Lion8bit(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(300):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
