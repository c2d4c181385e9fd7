"""Muon against torch.optim.Muon and against singular values in float64."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from steps import parameter, stepped, values
from torch import nn

from ao_optim import Muon
from ao_optim.muon import orthogonalized

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5)},
    {"lr": torch.tensor(0.02), "adjust_lr_fn": "original"},
)


def twins(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    made = [[parameter(*s, seed=n) for n, s in enumerate(shapes)] for _ in range(2)]
    return made[0], made[1]


@pytest.mark.parametrize("options", OPTIONS)
def test_full_momentum_equals_torch(options: dict[str, Any]) -> None:
    """Wide, tall, square and small matrices; torch.optim.Muon rounds to bfloat16 in the same
    places."""
    ours, theirs = twins((64, 160), (160, 64), (96, 96), (8, 24))
    options = {"lr": 0.02, **options}
    stepped(Muon(ours, state_bits=32, **options), 6)
    stepped(torch.optim.Muon(theirs, **options), 6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.04), ("fp8", 0.07), (4, 0.6)])
def test_low_bit_momentum_is_near(bits: Any, limit: float) -> None:
    """Columns of the gradients differ by up to 1000: small singular values are made large."""
    ours, full = twins((96, 160), (160, 96))
    start = [p.detach().clone() for p in full]
    optimizer = Muon(ours, lr=0.02, weight_decay=0.0, state_bits=bits)
    stepped(optimizer, 6)
    stepped(Muon(full, lr=0.02, weight_decay=0.0, state_bits=32), 6)
    for a, b, x in zip(ours, full, start, strict=True):
        assert 0 < (a - b).norm() < limit * (b - x).norm()
        assert "momentum_buffer_codes" in optimizer.state[a]
    n_bytes = sum(x.nbytes for x in optimizer.state[ours[0]].values())
    expected = {8: 1 + 4 / 256, "fp8": 1 + 4 / 256, 4: 0.5 + 4 / 128}[bits]
    assert abs(n_bytes / ours[0].numel() - expected) < 2e-3


def test_experts_are_matrices() -> None:
    """(E, N, K), and dimensions before: each matrix alone does the same."""
    stack = nn.Parameter(values(2, 3, 80, 64))
    alone = [nn.Parameter(x.clone()) for x in values(2, 3, 80, 64).flatten(0, 1)]
    one, two = Muon([stack], state_bits=32, lr=0.02), Muon(alone, state_bits=32, lr=0.02)
    for step in range(3):
        g = values(2, 3, 80, 64, seed=step)
        stack.grad = g
        for p, part in zip(alone, g.flatten(0, 1), strict=True):
            p.grad = part
        one.step()
        two.step()
    together = torch.stack([p.detach() for p in alone]).view_as(stack)
    torch.testing.assert_close(stack.detach(), together, rtol=1e-3, atol=1e-3)
    assert (stack - values(2, 3, 80, 64)).abs().max() > 0.005


def test_singular_values() -> None:
    for shape in ((64, 64), (200, 48), (3, 48, 200)):
        x = orthogonalized(
            values(*shape), coefficients=(3.4445, -4.7750, 2.0315), steps=5, eps=1e-7
        )
        found = torch.linalg.svdvals(x.double())
        assert x.shape == shape and found.max() < 1.3 and found.median() > 0.65
    zero = orthogonalized(torch.zeros(8, 8), coefficients=(3.4, -4.8, 2.0), steps=5, eps=1e-7)
    assert (zero == 0).all()


def test_bfloat16_stochastic_rounding_and_resuming() -> None:
    def made() -> list[nn.Parameter]:
        return [parameter(70, 256, dtype=torch.bfloat16), parameter(70, 75, dtype=torch.bfloat16)]

    options: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.0, "bf16_stochastic_round": True}
    straight, first = Muon(made(), **options), Muon(made(), **options)
    stepped(straight, 6)
    stepped(first, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    weights = [nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]]
    second = Muon(weights, lr=0.5)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["lr"] == 1e-4
    stepped(second, 3, start=3)
    for a, b in zip(weights, straight.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(second.state[a][name], x) for name, x in straight.state[b].items())
    nearest = Muon(made(), **{**options, "bf16_stochastic_round": False})
    stepped(nearest, 6)
    moved = [
        (p - q).abs().float().mean()
        for p, q in zip(nearest.param_groups[0]["params"], made(), strict=True)
    ]
    kept = [(p - q).abs().float().mean() for p, q in zip(weights, made(), strict=True)]
    assert all(k > 1.2 * m for k, m in zip(kept, moved, strict=True))  # small steps are not lost


def test_what_is_used_with_it() -> None:
    p = parameter(64, 80)
    optimizer = Muon([("w", p)], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[2] < losses[1] < losses[0]
    assert abs(optimizer.param_groups[0]["lr"] - 1e-4) < 1e-9
    optimizer.add_param_group({"params": [("more", parameter(64, 80))], "state_bits": 4})
    assert optimizer.param_groups[1]["block_size"] == 128


def test_what_is_refused() -> None:
    for params, options, error, words in (
        ([parameter(64)], {}, ValueError, "Muon takes matrices, a parameter has shape"),
        ([("norm", parameter(64))], {}, ValueError, "norm has shape .64,.: give norms"),
        ([parameter(8, 8)], {"momentum": 1.0}, ValueError, "momentum is in"),
        ([parameter(8, 8)], {"ns_steps": 100}, ValueError, "less than 100"),
        ([parameter(8, 8)], {"adjust_lr_fn": "mine"}, ValueError, "'match_rms_adamw', got 'mine'"),
        ([parameter(8, 8)], {"state_bits": 16}, ValueError, "state_bits is 8, 4"),
        ([parameter(8, 8)], {"lr": -1.0}, ValueError, "lr is 0 or more"),
        ([parameter(8, 8)], {"block_size": 12}, ValueError, "multiple of 8"),
        ([torch.zeros(8, 8, dtype=torch.complex64)], {}, TypeError, "complex64"),
    ):
        with pytest.raises(error, match=words):
            Muon(params, **options)
    p = parameter(64, 80)
    optimizer = Muon([p])
    stepped(optimizer, 1)
    before = p.detach().clone()
    optimizer.param_groups[0]["state_bits"] = 4
    with pytest.raises(ValueError, match="build a new optimizer"):
        stepped(optimizer, 1)
    optimizer.param_groups[0]["state_bits"] = 8
    other = torch.optim.Muon([parameter(64, 80)])
    stepped(other, 1)
    for state, words in (
        (other.state_dict(), "no state of an optimizer of ao-optim"),
        ({}, "this one has nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(state)
    p.grad = values(64, 80).to_sparse()
    with pytest.raises(NotImplementedError, match="dense"):
        optimizer.step()
    assert torch.equal(p, before)
