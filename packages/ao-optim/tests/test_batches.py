"""What a step remembers of the one before: whatever changes in between is seen, bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import parameter, values
from torch import Tensor, nn

from ao_kernels.ops.moments import counted
from ao_optim import AdamW8bit, Lion8bit, Muon
from ao_optim.batches import Planner

SHAPES = ((64, 80), (3, 5), (80, 64), (16, 256))
KINDS = (AdamW8bit, Lion8bit, Muon)


def gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    place = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = values(*p.shape, seed=100 * step + place).to(p.dtype)
            place += 1


def built(kind: Any) -> torch.optim.Optimizer:
    params = [parameter(*s, seed=i, dtype=torch.bfloat16) for i, s in enumerate(SHAPES)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 1e-2}]
    return kind(groups, lr=1e-3, weight_decay=0.1, bf16_stochastic_round=True, seed=3)


def first(optimizer: torch.optim.Optimizer) -> nn.Parameter:
    p: nn.Parameter = optimizer.param_groups[0]["params"][0]
    return p


def without_a_gradient(optimizer: torch.optim.Optimizer) -> None:
    first(optimizer).grad = None


def without_any(optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()


def other_options(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0].update(
        lr=torch.tensor(0.1), weight_decay=0.0, maximize=True, seed=9, bf16_stochastic_round=False
    )


def one_more_group(optimizer: torch.optim.Optimizer) -> None:
    fresh = parameter(32, 160, seed=9)
    optimizer.add_param_group({"params": [fresh], "state_bits": 4})
    fresh.grad = values(32, 160)


def state_forgotten(optimizer: torch.optim.Optimizer) -> None:
    del optimizer.state[first(optimizer)]


def record_replaced(optimizer: torch.optim.Optimizer) -> None:
    p = first(optimizer)
    optimizer.state[p] = {name: x.clone() for name, x in optimizer.state[p].items()}
    optimizer.state[p]["step"] += 7


def tensors_replaced(optimizer: torch.optim.Optimizer) -> None:
    record = optimizer.state[first(optimizer)]
    for name in record:
        record[name] = record[name].clone()
    record["step"].fill_(40.0)


def parameter_replaced(optimizer: torch.optim.Optimizer) -> None:
    fresh = parameter(64, 80, seed=20)
    optimizer.param_groups[0]["params"][0] = fresh
    fresh.grad = values(64, 80)


def other_dtypes(optimizer: torch.optim.Optimizer) -> None:
    """Of one parameter and its gradient, behind autograd's back."""
    p = first(optimizer)
    p.grad = None
    p.data = p.data.float()
    p.grad = values(64, 80)


def loaded(optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())
    for record in optimizer.state.values():
        record["step"].fill_(1.0)


CHANGES = (
    without_a_gradient,
    without_any,
    other_options,
    one_more_group,
    state_forgotten,
    record_replaced,
    tensors_replaced,
    parameter_replaced,
    other_dtypes,
    loaded,
)


def bits(optimizer: torch.optim.Optimizer) -> list[bytes]:
    tensors: list[Tensor] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            tensors += [p.detach(), *optimizer.state.get(p, {}).values()]
    return [x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for x in tensors]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_between_steps_are_seen(
    change: Callable[[torch.optim.Optimizer], None], kind: Any
) -> None:
    """As by an optimizer that plans every step anew; and the steps behind it too."""
    found = []
    for remembers in (True, False):
        optimizer = built(kind)
        for step in range(6):
            gradients(optimizer, step)
            if step == 3:
                change(optimizer)
            if not remembers:
                optimizer._planner = Planner()
            optimizer.step()
        found.append(bits(optimizer))
    assert found[0] == found[1]


def test_a_step_like_the_last_one_plans_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one with other gradients, learning rates and closures; a change plans once."""
    planned = []
    real = Planner._planned
    monkeypatch.setattr(Planner, "_planned", lambda *args: planned.append(1) or real(*args))
    optimizer = built(AdamW8bit)
    for step in range(4):
        gradients(optimizer, step)
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.step(lambda: 0.0)
    assert len(planned) == 1
    optimizer.param_groups[0]["maximize"] = True
    optimizer.step()
    optimizer.step()
    assert len(planned) == 2


def test_gradients_are_not_kept() -> None:
    optimizer = built(AdamW8bit)
    for step in range(2):
        gradients(optimizer, step)
        optimizer.step()
    kept = [weakref.ref(p.grad) for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    assert [ref() for ref in kept] == [None] * len(SHAPES)


def test_counts_of_any_kind_are_counted() -> None:
    """By torch, where the compiled counter does not take them."""
    counts = [torch.tensor(3.0), torch.tensor(5.0)]
    assert counted(counts) == [4.0, 6.0] and counts[1] == 6
    wide = [torch.tensor(3.0, dtype=torch.float64), torch.tensor([5.0])]
    assert counted(wide) == [4.0, 6.0] and wide[0] == 4
