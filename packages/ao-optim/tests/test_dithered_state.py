"""Moments of 4 bits follow gradients, on the mean over steps: the second one changes of their size,
the first one small ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ao_optim import Adam4bit, AdamW4bit, AdamW8bit
from ao_optim import steps as steps_of
from ao_optim.record import layout_of, read_moment

SHAPE = (64, 128)
# Of g**2 then, in columns; the first column, whose g**2 stays 1, is the largest of each block.
SIZES = torch.tensor([1.0, 0.6, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01]).repeat_interleave(16)


def moment(optimizer: Any, p: Tensor, name: str = "exp_avg_sq") -> Tensor:
    return read_moment(optimizer.state[p], name, layout_of(p, optimizer.param_groups[0]))


def means(make: Any, before: float = 0.4) -> Tensor:
    """exp_avg_sq in the columns, the mean over the last 200 of 900 steps: g**2 is `before` (and 1
    in the first ones) for 100, then SIZES."""
    p = nn.Parameter(torch.zeros(SHAPE))
    optimizer = make([p])
    found = torch.zeros(128)
    for step in range(900):
        squares = torch.where(SIZES == 1, 1.0, before) if step < 100 else SIZES
        p.grad = squares.sqrt().expand(SHAPE).contiguous()
        optimizer.step()
        if step >= 700:
            found += moment(optimizer, p).mean(0) / 200
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda params: AdamW4bit(params, lr=0.0, betas=(0.9, 0.99)),
        lambda params: Adam4bit(params, lr=0.0, betas=(0.9, 0.99), amsgrad=True),
        lambda params: AdamW8bit([{"params": params, "state_bits": 4}], lr=0.0, betas=(0.9, 0.99)),
    ],
    ids=["AdamW4bit", "Adam4bit", "a group of AdamW8bit"],
)
def test_it_converges_to_what_is_constant(make: Any) -> None:
    error = (means(make) / SIZES - 1).abs()
    print(error.view(8, 16).amax(1))
    assert error[SIZES > 0.04].max() < 0.05 and error.max() < 0.15  # of the two lowest codes


def test_to_the_nearest_it_would_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the way to the new value is less than half a cell: without the dither no
    element leaves the code it had, 0.4."""
    monkeypatch.setattr(steps_of, "dither_starts", lambda steps, offsets: [])
    found = means(lambda params: AdamW4bit(params, lr=0.0, betas=(0.9, 0.99)))
    assert (found[SIZES < 0.3] > 0.35).all()


def small_first_moments() -> Tensor:
    """exp_avg over g, the mean over the last 400 of 440 steps, where g is 0.1 % to 30 % of the
    block's largest."""
    shares = torch.tensor([1.0, -0.3, 0.1, -0.03, 0.01, -0.005, 0.002, 0.001]).repeat_interleave(16)
    p = nn.Parameter(torch.zeros(SHAPE))
    optimizer = AdamW4bit([p], lr=0.0)
    found = torch.zeros(128)
    for step in range(440):
        p.grad = shares.expand(SHAPE).contiguous()
        optimizer.step()
        if step >= 40:
            found += moment(optimizer, p, "exp_avg").mean(0) / 400
    return found / shares


def test_small_first_moments_add_up() -> None:
    """Below 2 % of the largest, the nearest value of what one step leaves is zero, always."""
    found = small_first_moments()
    print(found.view(8, 16).mean(1))
    assert (found.view(8, 16).mean(1) - 1).abs().max() < 0.1


def test_to_the_nearest_they_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_of, "dither_starts", lambda steps, offsets: [])
    assert (small_first_moments()[64:] == 0).all()


def test_a_resumed_run_has_the_same_bits() -> None:
    """The dither is that of the step's number, which the state holds."""
    torch.manual_seed(0)
    start = torch.randn(SHAPE)
    grads = [torch.randn(SHAPE) for _ in range(20)]

    def stepped(p: Tensor, optimizer: Any, some: list[Tensor]) -> None:
        for g in some:
            p.grad = g
            optimizer.step()

    whole = nn.Parameter(start.clone())
    optimizer = AdamW4bit([whole])
    stepped(whole, optimizer, grads[:11])
    resumed = nn.Parameter(whole.detach().clone())
    again = AdamW4bit([resumed])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(whole, optimizer, grads[11:])
    stepped(resumed, again, grads[11:])
    assert torch.equal(whole, resumed)
    for name, x in optimizer.state[whole].items():
        assert torch.equal(x, again.state[resumed][name]), name
