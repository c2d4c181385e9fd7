"""The offload optimizers against their base optimizer: bits must be the same."""

from __future__ import annotations

import copy
import gc
import io
from functools import partial
from typing import Any

import pytest
import torch
from offloaded import BASES, MODES, bits, modes, state_bits
from steps import values
from torch import Tensor, nn

from ao_optim import (
    Adam8bit,
    AdamW,
    AdamW4bit,
    AdamW8bit,
    CPUOffloadOptimizer,
    Lion8bit,
    StateOffloadOptimizer,
)
from ao_optim.transfers import Arrival, Transfers

OFFLOAD = (CPUOffloadOptimizer, StateOffloadOptimizer)


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 96)).to(dtype)


def backward(net: nn.Module, seed: int, *, scale: float = 1.0) -> None:
    dtype = next(net.parameters()).dtype
    x = values(16, 96, seed=seed).to(dtype)
    (scale * (net(x) - x).square().mean()).backward()


def trained(
    make: Any, *, steps: int = 4, micro_batches: int = 1, clip: float | None = None, net: Any = None
) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = model() if net is None else net
    optimizer = make(
        [{"params": net[0].parameters(), "weight_decay": 0.1}, {"params": net[2].parameters()}]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    for step in range(steps):
        for part in range(micro_batches):
            backward(net, 10 * step + part)
        if clip is not None and isinstance(optimizer, CPUOffloadOptimizer):
            optimizer.clip_grad_norm_(clip)
        elif clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return net, optimizer


@modes
@pytest.mark.parametrize("name", BASES)
def test_bits_are_those_of_the_base_optimizer(name: str, mode: Any) -> None:
    """Two groups, a schedule, bfloat16, one batch of parameters a call or several."""
    kind, options = BASES[name]
    one, plain = trained(partial(kind, **options))
    two, offloaded = trained(partial(mode, optimizer_class=kind, **options))
    assert bits(two.parameters()) == bits(one.parameters())
    assert bits(two.parameters()) != bits(model().parameters())
    assert state_bits(offloaded.state_dict()) == state_bits(plain.state_dict())
    assert offloaded.param_groups[0]["lr"] == plain.param_groups[0]["lr"] != options["lr"]
    for ours, base in zip(two.parameters(), one.parameters(), strict=True):
        assert set(offloaded.state[ours]) == set(plain.state[base])


def test_torchs_adam_is_fused_unless_told() -> None:
    for options, expected in (({}, True), ({"fused": False}, False), ({"foreach": True}, None)):
        optimizer = CPUOffloadOptimizer(model().parameters(), lr=1e-2, **options)
        assert optimizer.param_groups[0]["fused"] is expected
    one, _ = trained(partial(torch.optim.AdamW, lr=1e-2, fused=True))
    two, _ = trained(partial(CPUOffloadOptimizer, lr=1e-2))
    assert bits(two.parameters()) == bits(one.parameters())
    assert "fused" not in CPUOffloadOptimizer(model().parameters(), AdamW8bit).param_groups[0]


class Counting(Transfers):
    """Counts parameters that are read from the device, and waits for what goes there."""

    def __init__(self) -> None:
        self.reads = self.joins = 0

    def fetch(self, source: Tensor, target: Tensor, *, norm: bool = False, **more: Any) -> Arrival:
        self.reads += not norm  # a parameter's, not a gradient's
        return super().fetch(source, target, norm=norm, **more)

    def join(self) -> None:
        self.joins += 1


def test_weights_are_read_once_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step does not read what the one before has written; an error leaves no copy under way."""
    counting = Counting()
    monkeypatch.setattr("ao_optim.offload.transfers_of", lambda device: counting)
    monkeypatch.setattr("ao_optim.offload.BATCH", 1)
    net, optimizer = trained(partial(CPUOffloadOptimizer, optimizer_class=AdamW8bit, lr=1e-2))
    n_parameters = len(list(net.parameters()))
    assert counting.reads == n_parameters  # when the optimizer was built
    assert counting.joins == 4

    backward(net, 0)
    before = bits(net.parameters())
    optimizer.param_groups[1]["lr"] = "fast"
    with pytest.raises(TypeError):
        optimizer.step()
    assert bits(net.parameters()) != before  # the first group was there before the error
    assert counting.joins == 5 and counting.reads == n_parameters


@modes
def test_small_batches(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each parameter in a call of its own, and the random bits are still those of its place."""
    for module in ("offload", "state_offload"):
        monkeypatch.setattr(f"ao_optim.{module}.BATCH", 1)
    options = {"lr": 1e-3, "bf16_stochastic_round": True}
    one, _ = trained(partial(AdamW8bit, **options))
    two, _ = trained(partial(mode, optimizer_class=AdamW8bit, **options))
    assert bits(two.parameters()) == bits(one.parameters())


@pytest.mark.parametrize("mode", ["gradients stay", "gradients go", "state"])
def test_micro_batches_add_up(mode: str) -> None:
    one, _ = trained(partial(AdamW, lr=1e-2), micro_batches=3)
    two, _ = trained(partial(MODES[mode], optimizer_class=AdamW, lr=1e-2), micro_batches=3)
    assert bits(two.parameters()) == bits(one.parameters())


@pytest.mark.parametrize("norm_type", [2.0, 1.0, torch.inf])
@pytest.mark.parametrize("mode", ["gradients stay", "gradients go"])
def test_clipping(mode: str, norm_type: float) -> None:
    """The norm before clipping, and gradients scaled by it, once or in two calls."""
    nets = [model(torch.float32), model(torch.float32)]
    theirs = torch.optim.SGD(nets[0].parameters(), lr=1.0)
    ours = MODES[mode](nets[1].parameters(), torch.optim.SGD, lr=1.0)
    for net in nets:
        backward(net, 1, scale=1000.0)
    expected = nn.utils.clip_grad_norm_(nets[0].parameters(), 0.5, norm_type)
    found = ours.clip_grad_norm_(2.0, norm_type)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.clip_grad_norm_(0.5, norm_type).item(), 2.0, rtol=1e-5, atol=0)
    theirs.step()
    ours.step()
    for a, b in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    backward(nets[1], 2, scale=torch.nan)
    with pytest.raises(RuntimeError, match=r"not clipped|cannot be clipped"):
        ours.clip_grad_norm_(1.0, norm_type, error_if_nonfinite=True)


@pytest.mark.parametrize("clip", [0.05, 1e-8])
@pytest.mark.parametrize("kind", [AdamW8bit, AdamW, Adam8bit, Lion8bit])
def test_clipping_by_the_base_optimizer(kind: Any, clip: float) -> None:
    """AdamW and Lion take the scale into factors, unless it is very small; gradients stay then."""
    options = {"lr": 1e-2, "eps": 1e-12} if kind is not Lion8bit else {"lr": 1e-2}
    one, _ = trained(partial(kind, **options), clip=clip, net=model(torch.float32))
    make = partial(MODES["gradients go"], optimizer_class=kind, **options)
    two, optimizer = trained(make, clip=clip, net=model(torch.float32))
    for a, b in zip(two.parameters(), one.parameters(), strict=True):
        # A code may be another one, and the sign of what is nearly zero
        far = (a - b).abs() > 1e-4
        assert far.float().mean() < 1e-2 and (a - b).abs().max() < 0.1
    assert optimizer.base._gradient_scale == 1.0
    backward(two, 9)
    lane = optimizer._lanes[two[0].weight]
    before = lane.gradient.clone()
    optimizer.clip_grad_norm_(clip)
    optimizer.step()
    kept = clip == 0.05 and kind is not Adam8bit
    assert torch.equal(lane.gradient, before) == kept


def test_gradients_are_gone_from_the_device_and_can_be_forgotten() -> None:
    net = model()
    optimizer = CPUOffloadOptimizer(net.parameters(), offload_gradients=True, lr=1.0)
    before = bits(net.parameters())
    backward(net, 0)
    assert all(p.grad is None for p in net.parameters())
    optimizer.zero_grad()
    optimizer.step()
    assert bits(net.parameters()) == before
    backward(net, 0)
    optimizer.step()
    assert bits(net.parameters()) != before


@modes
def test_resuming_and_crossing_over(mode: Any) -> None:
    """State dicts go from the base optimizer to this one and back, through a file, bit for bit."""
    make = partial(mode, optimizer_class=AdamW8bit, lr=1e-2)
    net, optimizer = trained(make, steps=4)
    for kind in (make, partial(AdamW8bit, lr=0.5)):
        file, saved, lr = io.BytesIO(), optimizer.state_dict(), optimizer.param_groups[0]["lr"]
        torch.save(saved, file)
        file.seek(0)
        del optimizer  # or it would go on to take the gradients
        optimizer = kind([{"params": net[0].parameters()}, {"params": net[2].parameters()}])
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        assert optimizer.param_groups[0]["lr"] == lr
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        assert state_bits(optimizer.state_dict()) == state_bits(saved)
        backward(net, 99)
        optimizer.step()
        optimizer.zero_grad()
    reference, optimizer = trained(partial(AdamW8bit, lr=1e-2), steps=4)
    for _ in range(2):
        backward(reference, 99)
        optimizer.step()
        optimizer.zero_grad()
    assert bits(net.parameters()) == bits(reference.parameters())


@modes
def test_weights_that_were_loaded_are_seen(mode: Any) -> None:
    nets = [model(), model()]
    optimizers = [
        torch.optim.SGD(nets[0].parameters(), lr=0.1),
        mode(nets[1].parameters(), torch.optim.SGD, lr=0.1),
    ]
    other = {name: x + 1 for name, x in model().state_dict().items()}
    for net, optimizer in zip(nets, optimizers, strict=True):
        net.load_state_dict(other)
        backward(net, 0)
        optimizer.step()
        optimizer.zero_grad()
        for p in net.parameters():
            p.data = p.data * 2
        if isinstance(optimizer, CPUOffloadOptimizer):
            optimizer.sync_from_model()
        backward(net, 1)
        optimizer.step()
    assert bits(nets[0].parameters()) == bits(nets[1].parameters())


@modes
def test_frozen_parameters(mode: Any) -> None:
    nets = [model(), model()]
    for net in nets:
        net[0].requires_grad_(False)
    optimizers = [
        AdamW8bit(nets[0].parameters(), lr=0.1),
        mode(nets[1].parameters(), AdamW8bit, lr=0.1),
    ]
    frozen = bits(nets[1][0].parameters())
    for net, optimizer in zip(nets, optimizers, strict=True):
        for step in range(4):
            backward(net, step)
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                assert bits(net[0].parameters()) == frozen
                net[0].requires_grad_(True)
    assert bits(nets[0].parameters()) == bits(nets[1].parameters())
    assert state_bits(optimizers[0].state_dict()) == state_bits(optimizers[1].state_dict())


@modes
def test_closures_groups_and_hooks(mode: Any) -> None:
    net, extra = model(torch.float32), nn.Parameter(values(64, 80))
    optimizer = mode(net.named_parameters(), AdamW, lr=0.1)
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
    optimizer.add_param_group({"params": [("extra", extra)], "lr": 0.5})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5]
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "mark": 1})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = extra.square().sum()
        loss.backward()
        return loss

    before = extra.detach().clone()
    assert optimizer.step(closure) == before.square().sum()
    torch.testing.assert_close((extra - before).abs().mean().item(), 0.5, rtol=0.1, atol=0)
    assert seen == ["before", "after"] and optimizer.state_dict()["mark"] == 1
    optimizer.param_groups[1]["lr"] = 0.0
    middle = extra.detach().clone()
    optimizer.step(closure)
    assert torch.equal(extra, middle)


def test_an_optimizer_that_is_gone_takes_no_gradients() -> None:
    net = model()
    optimizer = CPUOffloadOptimizer(net.parameters(), offload_gradients=True)
    del optimizer
    gc.collect()
    backward(net, 0)
    assert all(p.grad is not None for p in net.parameters())


def test_one_backward_a_step_in_backward() -> None:
    net = model()
    optimizer = MODES["state in backward"](net.parameters(), AdamW)
    backward(net, 0)
    with pytest.raises(RuntimeError, match="one backward a step"):
        backward(net, 1)
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) before step\(\)"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()
    backward(net, 2)
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(RuntimeError, match="lr of group 0 changed between backward and step"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="between backward and step"):
        optimizer.state_dict()


def test_an_error_of_the_base_optimizer_arrives() -> None:
    """In step(), also if a thread had it."""
    for mode in MODES.values():
        net = model(torch.float32)
        optimizer = mode(net.parameters(), torch.optim.SGD, lr=0.1)
        optimizer.param_groups[0]["lr"] = "fast"
        backward(net, 0)
        with pytest.raises(TypeError):
            optimizer.step()


def test_what_is_refused() -> None:
    net = model()
    for build, error, words in (
        (lambda: CPUOffloadOptimizer(net.parameters(), "AdamW"), TypeError, "class of optimizers"),
        (lambda: CPUOffloadOptimizer(net.parameters(), torch.optim.LBFGS), ValueError, "alone"),
        (lambda: StateOffloadOptimizer(net.parameters(), torch.optim.LBFGS), ValueError, "alone"),
        (lambda: CPUOffloadOptimizer(net.parameters(), AdamW8bit, momentum=1), TypeError, "moment"),
        (lambda: CPUOffloadOptimizer(net.parameters(), AdamW8bit, lr=-1.0), ValueError, "lr is 0"),
        (lambda: CPUOffloadOptimizer(set(net.parameters())), TypeError, "no order"),
        (lambda: CPUOffloadOptimizer(net[0].weight), TypeError, "iterable"),
        (
            lambda: CPUOffloadOptimizer([nn.Parameter(torch.empty(8, 8, device="meta"))]),
            NotImplementedError,
            "the parameters are on meta",
        ),
    ):
        with pytest.raises(error, match=words):
            build()
    optimizer = CPUOffloadOptimizer(net.parameters(), AdamW8bit)
    fresh = nn.Parameter(values(8, 8))
    with pytest.raises(ValueError, match="twice"):
        optimizer.add_param_group({"params": [fresh, net[0].weight]})
    optimizer.add_param_group({"params": [fresh]})  # nothing of the failure is left
    for kind in OFFLOAD:
        with pytest.raises(TypeError, match="save its state_dict"):
            copy.deepcopy(kind(net.parameters(), AdamW8bit))
    embedding = nn.Embedding(100, 64, sparse=True)
    for mode in MODES.values():
        optimizer = mode(embedding.parameters(), AdamW8bit)
        with pytest.raises(NotImplementedError, match="dense gradients"):
            embedding(torch.arange(4)).sum().backward()
            optimizer.step()
        embedding.weight.grad = None
        del optimizer


@modes
def test_a_state_dict_that_does_not_fit_changes_nothing(mode: Any) -> None:
    net, optimizer = trained(partial(mode, optimizer_class=AdamW8bit))
    before = state_bits(optimizer.state_dict())
    _, other = trained(AdamW4bit)
    broken = copy.deepcopy(optimizer.state_dict())
    del broken["state"][0]["exp_avg"]
    for state, words in (
        (other.state_dict(), "holds the state of AdamW4bit"),
        (broken, "lacks exp_avg_codes"),
        ({}, "has nothing"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(state)
        assert state_bits(optimizer.state_dict()) == before
    backward(net, 0)
    optimizer.step()


# --- on a GPU
