"""Steps against float64 and against torch's, and everything that an optimizer is used with."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from steps import ALL, LOW_BIT, parameter, stepped, values
from torch import Tensor, nn

import ao_optim
from ao_core.moments import dequantize_moment, dither_starts, quantize_moment
from ao_optim import AdamW, AdamW4bit, AdamW8bit, AdamWFp8
from ao_optim import steps as steps_of
from ao_optim.record import layout_of, read_moment


def moments(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    layout = layout_of(p, optimizer.param_groups[0])
    return {name: read_moment(optimizer.state[p], name, layout) for name in layout.moments}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_a_step_against_float64(kind: Any, amsgrad: bool) -> None:
    """From the stored moments, the parameter is within float32's rounding of the step in float64;
    the moments behind it are the exact ones, quantized."""
    p = parameter(37, 129)
    optimizer = kind([p], lr=0.01, weight_decay=0.1, amsgrad=amsgrad, maximize=amsgrad)
    stepped(optimizer, 4)
    before = {name: x.double() for name, x in moments(optimizer, p).items()}
    old = p.detach().double()
    stepped(optimizer, 1, start=4)
    g = p.grad.double() * (-1 if amsgrad else 1)
    if kind.decoupled:
        old = old * (1 - 0.01 * 0.1)
    else:
        g = g + 0.1 * old
    exact = {
        "exp_avg": 0.9 * before["exp_avg"] + 0.1 * g,
        "exp_avg_sq": 0.999 * before["exp_avg_sq"] + 0.001 * g**2,
    }
    if amsgrad:
        exact["max_exp_avg_sq"] = torch.maximum(before["max_exp_avg_sq"], exact["exp_avg_sq"])
    root = exact["max_exp_avg_sq" if amsgrad else "exp_avg_sq"].sqrt() / (1 - 0.999**5) ** 0.5
    rate = 0.01 / (1 - 0.9**5) / (root + 1e-8)
    error = (p.detach().double() - (old - rate * exact["exp_avg"])).abs()
    terms = rate * (0.9 * before["exp_avg"].abs() + 0.1 * g.abs())  # they may cancel
    assert (error <= 2.0**-22 * old.abs() + 2.0**-20 * terms).all()
    group = optimizer.param_groups[0]
    for name, x in moments(optimizer, p).items():
        if group["state_bits"] == 32:
            torch.testing.assert_close(x.double(), exact[name], rtol=1e-6, atol=1e-7)
            continue
        options = {
            "bits": group["state_bits"],
            "signed": name == "exp_avg",
            "block_size": group["block_size"],
        }
        dithered = name.startswith("exp_avg") and group["state_bits"] == 4
        dither = dither_starts([5], [0])[0] if dithered else None
        codes, scale = quantize_moment(exact[name], dither=dither, **options)
        expected = dequantize_moment(codes, scale, **options).flatten()[: x.numel()].view(x.shape)
        far = (x - expected).abs() > 1e-5 * expected.abs()
        assert far.double().mean() < 1e-3  # a value at a midpoint may go either way


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_full_state_equals_torch(amsgrad: bool, dtype: torch.dtype) -> None:
    ours, theirs = parameter(80, 70, dtype=dtype), parameter(80, 70, dtype=dtype)
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": amsgrad}
    for kind, p in ((AdamW, ours), (torch.optim.AdamW, theirs)):
        stepped(kind([p], **options), 20)
    tight = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(ours, theirs, rtol=tight, atol=tight)


@pytest.mark.parametrize("kind", LOW_BIT)
def test_small_parameters_keep_full_state(kind: Any) -> None:
    """Below 4096 elements nothing is quantized, and steps are torch's."""
    small, large = parameter(4095), parameter(4096)
    twin = parameter(4095)
    reference = torch.optim.AdamW if kind.decoupled else torch.optim.Adam
    optimizer = kind([small, large], weight_decay=0.1)
    stepped(optimizer, 5)
    stepped(reference([twin], weight_decay=0.1), 5)
    torch.testing.assert_close(small, twin, rtol=1e-5, atol=1e-6)
    assert set(optimizer.state[small]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "exp_avg_codes" in optimizer.state[large]


@pytest.mark.parametrize(
    ("kind", "expected"), [(AdamW8bit, 2.032), (AdamW4bit, 1.0625), (AdamWFp8, 2.032), (AdamW, 8)]
)
def test_bytes_a_parameter(kind: Any, expected: float) -> None:
    """The table of the README, counted."""
    p = parameter(1024, 1024)
    optimizer = kind([p])
    stepped(optimizer, 1)
    n_bytes = sum(x.nbytes for x in optimizer.state[p].values())
    exact = {2.032: 2 + 8 / 256, 1.0625: 1 + 8 / 128 * 1, 8: 8}[expected]
    assert abs(n_bytes / p.numel() - exact) < 1e-4


def test_groups_have_their_own_bits() -> None:
    a, b, c = (parameter(64, 128, seed=seed) for seed in range(3))
    groups = [{"params": [a]}, {"params": [b], "state_bits": 32}, {"params": [c], "state_bits": 4}]
    optimizer = AdamW8bit(groups, lr=0.01)
    stepped(optimizer, 3)
    assert [g["block_size"] for g in optimizer.param_groups] == [256, 256, 128]
    assert optimizer.state[a]["exp_avg_codes"].shape == (32, 256)
    assert optimizer.state[b]["exp_avg"].dtype == torch.float32
    assert optimizer.state[c]["exp_avg_codes"].shape == (64, 64)
    d = parameter(64, 128)
    optimizer.add_param_group({"params": d, "state_bits": "fp8", "block_size": 64, "lr": 0.5})
    stepped(optimizer, 1, start=3)
    assert optimizer.state[d]["exp_avg_codes"].dtype == torch.float8_e4m3fn
    assert optimizer.state[d]["exp_avg_scale"].shape == (128,)
    torch.testing.assert_close((d - values(64, 128)).abs().mean().item(), 0.5, rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", [AdamW8bit, ao_optim.Adam8bit, AdamW])
def test_tensors_as_options(kind: Any) -> None:
    """lr, betas and weight_decay as tensors, changed between steps, do what numbers do."""
    plain, tensors = parameter(64, 80), parameter(64, 80)
    numbers = kind([plain], lr=0.01, weight_decay=0.1)
    held = kind(
        [tensors],
        lr=torch.tensor(0.01),
        betas=(torch.tensor(0.9), torch.tensor([0.999])),
        weight_decay=torch.tensor([0.1]),
    )
    for start, lr in enumerate((0.01, 0.002, 0.03)):
        beta, decay = 0.9 - 0.1 * start, 0.1 * start
        numbers.param_groups[0].update(lr=lr, betas=(beta, 0.999), weight_decay=decay)
        held.param_groups[0]["lr"].fill_(lr)
        held.param_groups[0]["betas"][0].fill_(beta)
        held.param_groups[0]["weight_decay"].fill_(decay)
        stepped(numbers, 1, start=start)
        stepped(held, 1, start=start)
    torch.testing.assert_close(tensors, plain, rtol=1e-5, atol=1e-5)
    held.param_groups[0]["lr"] = 0.0  # and back to a number
    before = tensors.detach().clone()
    stepped(held, 1, start=3)
    assert torch.equal(tensors, before)


def test_arguments_are_those_of_torch() -> None:
    """In torch's order and with its defaults, less those that choose an implementation."""
    chosen = ("foreach", "capturable", "differentiable", "fused")
    for kind in ALL:
        theirs = inspect.signature(torch.optim.AdamW if kind.decoupled else torch.optim.Adam)
        ours = inspect.signature(kind).parameters
        expected = [name for name in theirs.parameters if name not in chosen]
        if not kind.decoupled:
            expected.remove("decoupled_weight_decay")
        assert list(ours)[: len(expected)] == expected
        optimizer, twin = kind([parameter(8, 8)]), torch.optim.AdamW([parameter(8, 8)])
        if not kind.decoupled:
            twin = torch.optim.Adam([parameter(8, 8)])
        for name in expected[1:]:
            assert optimizer.param_groups[0][name] == twin.param_groups[0][name], name
            assert ours[name].kind == theirs.parameters[name].kind or name == "maximize"


def test_many_parameters_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an op, and so one launch of a kernel, or two with more than 240: whatever groups have for
    lr and weight decay. Other formats take calls of their own."""
    calls: list[int] = []
    real = steps_of.adam_step
    monkeypatch.setattr(steps_of, "adam_step", lambda p, *a: calls.append(len(p)) or real(p, *a))
    params = [parameter(16, 256 + 8 * (i % 3), seed=i) for i in range(300)]
    groups = [{"params": params[:100], "lr": 0.1}, {"params": params[100:], "weight_decay": 0.0}]
    optimizer = AdamW8bit([*groups, {"params": [parameter(10)]}])
    stepped(optimizer, 2)
    assert calls == [300, 1, 300, 1]


def test_a_compiled_step_is_the_same() -> None:
    """torch.compile leaves the step to Python, without a warning and whatever lr is."""
    plain, compiled = parameter(64, 80), parameter(64, 80)
    one, two = AdamW8bit([plain]), AdamW8bit([compiled])
    step = torch.compile(lambda: two.step(), backend="eager")
    for number in range(3):
        for optimizer, take in ((one, one.step), (two, step)):
            p = optimizer.param_groups[0]["params"][0]
            p.grad = values(64, 80, seed=number)
            optimizer.param_groups[0]["lr"] = 0.1 / (number + 1)
            take()
    assert torch.equal(plain, compiled) and two.state[compiled]["step"] == 3


@pytest.mark.parametrize("kind", [AdamW8bit, AdamW])
def test_a_schedule_of_a_tensor(kind: Any) -> None:
    """Schedulers change lr in place where it is a tensor."""
    plain, held = parameter(64, 80), parameter(64, 80)
    for p, lr in ((plain, 0.1), (held, torch.tensor(0.1))):
        optimizer = kind([p], lr=lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for step in range(3):
            stepped(optimizer, 1, start=step)
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.0125)
    torch.testing.assert_close(held, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AdamW8bit, AdamW])
def test_schedulers_and_closures(kind: Any) -> None:
    p = parameter(64, 80)
    optimizer = kind([p], lr=0.1, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[0] == float((values(64, 80) ** 2).sum()) and losses[2] < losses[1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**3


def test_grad_scaler_and_clipping() -> None:
    """Scaled gradients give the same step; a step with inf is left out."""
    plain, scaled = parameter(64, 80), parameter(64, 80)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for p, through in ((plain, False), (scaled, True)):
        optimizer = AdamW8bit([p])
        loss = (p * values(64, 80, seed=1)).sum()
        (scaler.scale(loss) if through else loss).backward()
        if through:
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([p], 0.5)
        torch.testing.assert_close(norm, values(64, 80, seed=1).norm())
        torch.testing.assert_close(p.grad.norm().item(), 0.5, rtol=1e-4, atol=0)
        scaler.step(optimizer) if through else optimizer.step()
    torch.testing.assert_close(scaled, plain)
    scaler.update()
    before = scaled.detach().clone()
    optimizer.zero_grad()
    scaler.scale((scaled * torch.inf).sum()).backward()
    scaler.step(optimizer)
    assert torch.equal(scaled, before) and optimizer.state[scaled]["step"] == 1


def test_frozen_parameters_and_strides() -> None:
    frozen, idle, turned = parameter(64, 80), parameter(64, 80), parameter(64, 80)
    frozen.requires_grad_(False)
    plain = parameter(64, 80)
    with torch.no_grad():
        turned = nn.Parameter(turned.t().contiguous().t())
    assert not turned.is_contiguous()
    optimizer, other = AdamW8bit([frozen, idle, turned]), AdamW8bit([plain])
    turned.grad = plain.grad = values(64, 80, seed=3)
    optimizer.step()
    other.step()
    assert torch.equal(frozen, values(64, 80)) and torch.equal(idle, values(64, 80))
    assert torch.equal(turned, plain) and list(optimizer.state) == [turned]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ALL)
def test_gradients_that_are_not_finite(kind: Any, bad: float) -> None:
    """The parameter of the element becomes NaN, as with torch; no other in this step. With the next
    step so does the rest of its block, and nothing else."""
    p, twin = parameter(64, 128), parameter(64, 128)
    optimizer = kind([p])
    reference = (torch.optim.AdamW if kind.decoupled else torch.optim.Adam)([twin])
    for one in (p, twin):
        one.grad = values(64, 128, seed=1)
        one.grad[1, 7] = bad
    optimizer.step()
    reference.step()
    assert torch.equal(p.isnan(), twin.isnan()) and int(p.isnan().sum()) == 1
    p.grad = values(64, 128, seed=2)
    optimizer.step()
    group = optimizer.param_groups[0]
    block = torch.zeros(64 * 128, dtype=torch.bool)
    size = 1 if group["state_bits"] == 32 else group["block_size"]
    first = (128 + 7) // size * size
    block[first : first + size] = True
    assert torch.equal(p.isnan().flatten(), block)


def test_bf16_stochastic_rounding_is_unbiased_and_repeats() -> None:
    """A step of a 16th of the spacing: nearest keeps all weights, stochastic moves a 16th."""

    def run(seed: int, stochastic: bool) -> Tensor:
        p = nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16))
        optimizer = AdamW8bit(
            [p], lr=2.0**-12, weight_decay=0.0, bf16_stochastic_round=stochastic, seed=seed
        )
        p.grad = torch.ones_like(p)
        optimizer.step()
        return p.detach()

    assert (run(0, False) == 1).all()
    moved = run(0, True)
    share = (moved < 1).double().mean().item()
    expected = 2.0**-12 / 2.0**-8
    assert abs(share - expected) < 5 * (expected / 65536) ** 0.5
    assert (
        abs(moved.double().mean().item() - (1 - 2.0**-12)) < 5 * 2.0**-8 * (expected / 65536) ** 0.5
    )
    assert torch.equal(moved, run(0, True)) and not torch.equal(moved, run(1, True))


def test_refusals() -> None:
    p = parameter(64, 80)
    with pytest.raises(TypeError, match=r"complex64; allowed are torch\.float32"):
        AdamW8bit([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    for options, words in (
        ({"lr": -1.0}, "lr is 0 or more, got -1"),
        ({"lr": torch.ones(2)}, "lr as a tensor has one element"),
        ({"betas": (1.0, 0.9)}, "betas are two numbers"),
        ({"eps": -1e-8}, "eps is 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay is 0 or more, got nan"),
        ({"state_bits": 5}, "state_bits is 8, 4, 'fp8' or 32, got 5"),
        ({"state_bits": True}, "state_bits is"),
        ({"block_size": 100}, "block_size is a multiple of 8, got 100"),
        ({"seed": -1}, "seed is a number"),
    ):
        with pytest.raises(ValueError, match=words):
            AdamW8bit([p], **options)
    with pytest.raises(TypeError, match="ordered collections"):
        AdamW8bit([{"params": {p}}])
    optimizer = AdamW8bit([("weight", p)])
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    optimizer = AdamW8bit(p for p in [p])
    with pytest.raises(ValueError, match="betas are two numbers"):
        optimizer.add_param_group({"params": [parameter(3)], "betas": (0.9, 2.0)})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_change_nothing() -> None:
    dense, table = parameter(64, 80), nn.Embedding(100, 64, sparse=True)
    optimizer = AdamW8bit([dense, *table.parameters()])
    dense.grad = values(64, 80)
    table(torch.tensor([3])).sum().backward()
    with pytest.raises(NotImplementedError, match=r"dense gradients, got torch\.sparse_coo"):
        optimizer.step()
    assert torch.equal(dense, values(64, 80)) and not optimizer.state


def test_options_that_shape_the_state_are_fixed_by_the_first_step() -> None:
    p = parameter(64, 80)
    optimizer = AdamW8bit([p])
    stepped(optimizer, 1)
    before = p.detach().clone()
    for option, value in (("state_bits", 4), ("block_size", 64), ("amsgrad", True)):
        old = optimizer.param_groups[0][option]
        optimizer.param_groups[0][option] = value
        with pytest.raises(ValueError, match="cannot change after the first step"):
            optimizer.step()
        optimizer.param_groups[0][option] = old
    assert torch.equal(p, before)


def test_copies_go_on_as_the_original() -> None:
    p = parameter(64, 80)
    optimizer = AdamW4bit([p])
    stepped(optimizer, 2)
    twin = copy.deepcopy(optimizer)
    stepped(twin, 2, start=2)
    stepped(optimizer, 2, start=2)
    assert torch.equal(twin.param_groups[0]["params"][0], p)
    with warnings.catch_warnings(record=True) as caught:
        repr(optimizer)
    assert not caught
