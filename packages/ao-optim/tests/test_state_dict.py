"""Saving, resuming and converting: bit-equal, or refused before anything changes."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import ALL, LOW_BIT, parameter, stepped
from torch import Tensor, nn

import ao_optim
from ao_optim import AdamW, AdamW4bit, AdamW8bit, AdamWFp8, Lion8bit, Muon
from ao_optim.record import layout_of, read_moment


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Quantized in rows of whole blocks, small, and with a last block that is shorter."""
    shapes = ((70, 256), (100,), (70, 75))
    return [parameter(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bits_of(tensors: list[Tensor]) -> list[list[int]]:
    return [x.detach().flatten().view(torch.uint8).tolist() for x in tensors]


def all_bits(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    """Everything that a step may change."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            found += bits_of([p, *optimizer.state.get(p, {}).values()])
    return found


def assert_resumed(second: torch.optim.Optimizer, first: torch.optim.Optimizer) -> None:
    """Every bit, but for scales of blocks that hold no more than their largest and zeros: of two
    scales beside each other both may give these, and the moment does not say which it was."""
    groups = zip(second.param_groups, first.param_groups, strict=True)
    pairs = [
        (group, p, q)
        for group, other in groups
        for p, q in zip(group["params"], other["params"], strict=True)
    ]
    for group, p, q in pairs:
        found, wanted, layout = second.state[p], first.state[q], layout_of(p, group)
        assert list(found) == list(wanted)
        assert bits_of([p]) == bits_of([q])
        for name in wanted:
            if not name.endswith("_scale"):
                assert bits_of([found[name]]) == bits_of([wanted[name]]), name
        for name in layout.moments:
            x, y = (read_moment(record, name, layout) for record in (found, wanted))
            assert bits_of([x]) == bits_of([y]), name
            if f"{name}_scale" not in wanted:
                continue
            apart = found[f"{name}_scale"] != wanted[f"{name}_scale"]
            n = layout.block_size
            blocks = nn.functional.pad(x.flatten(), (0, -x.numel() % n)).view(-1, n)[apart].abs()
            largest = blocks.amax(1, keepdim=True) if len(blocks) else blocks
            assert ((blocks == 0) | (blocks == largest)).all(), name


@pytest.mark.parametrize("kind", ALL)
def test_resuming_is_as_if_nothing_had_happened(kind: Any) -> None:
    """bfloat16 with stochastic rounding: parameters and every byte of the state."""
    options: dict[str, Any] = {"lr": 1e-3, "bf16_stochastic_round": True, "amsgrad": True}
    options["seed"] = 7
    straight = kind(parameters(torch.bfloat16), **options)
    stepped(straight, 6)
    first = kind(parameters(torch.bfloat16), **options)
    stepped(first, 3)
    saved = through_a_file(first.state_dict())
    weights = [p.detach().clone() for p in first.param_groups[0]["params"]]
    second = kind([nn.Parameter(w) for w in weights], lr=0.5)  # options come from the file
    second.param_groups[0]["amsgrad"] = True
    second.load_state_dict(saved)
    assert_resumed(second, first)
    stepped(second, 3, start=3)
    assert all_bits(second) == all_bits(straight)
    stepped(first, 1, start=3)  # what was loaded shares no memory with what was saved
    assert second.state[second.param_groups[0]["params"][0]]["step"] == 6


def test_hooks_and_schedulers_see_the_load() -> None:
    optimizer = AdamW8bit(parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    stepped(optimizer, 1)
    schedule.step()
    saved = through_a_file(optimizer.state_dict())
    other, seen = AdamW8bit(parameters(), lr=0.1), []
    other.register_load_state_dict_pre_hook(lambda o, state: seen.append(sorted(state)))
    other.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    other.load_state_dict(saved)
    assert seen == [["param_groups", "state"], 0.1 * 0.1]
    assert other.param_groups[0]["initial_lr"] == 0.1


@pytest.mark.parametrize("kind", LOW_BIT)
def test_to_torch_and_back(kind: Any) -> None:
    """Codes and scales survive full precision; torch goes on from it."""
    reference = torch.optim.AdamW if kind.decoupled else torch.optim.Adam
    optimizer = kind(parameters(), lr=0.01)
    stepped(optimizer, 5)
    full = through_a_file(optimizer.full_state_dict())
    theirs = reference(
        [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    )
    theirs.load_state_dict(copy.deepcopy(full))  # torch keeps and changes its `step`
    stepped(theirs, 1, start=5)
    again = kind([nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]])
    again.load_full_state_dict(full)
    for old, new in zip(optimizer.state.values(), again.state.values(), strict=True):
        for name in old:
            if name.endswith("_scale"):
                torch.testing.assert_close(new[name], old[name], rtol=1e-6, atol=0)
            else:
                assert bits_of([new[name]]) == bits_of([old[name]]), name
    stepped(optimizer, 1, start=5)
    for ours, its in zip(
        optimizer.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True
    ):
        torch.testing.assert_close(ours, its, rtol=1e-5, atol=1e-6)
    assert theirs.param_groups[0]["lr"] == again.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("kind", [AdamW8bit, AdamW4bit, AdamWFp8, AdamW])
def test_from_torch(kind: Any) -> None:
    """The state of torch.optim.AdamW within the format's error; lr comes, block_size stays."""
    theirs = torch.optim.AdamW(parameters(), lr=0.02, amsgrad=True)
    stepped(theirs, 5)
    ours = kind(parameters(), block_size=64)
    ours.load_full_state_dict(through_a_file(theirs.state_dict()))
    group = ours.param_groups[0]
    assert (group["lr"], group["amsgrad"], group["block_size"]) == (0.02, True, 64)
    back = ours.full_state_dict()["state"]
    limit = {AdamW8bit: 0.016, AdamW4bit: 0.16, AdamWFp8: 2.0**-4, AdamW: 0.0}[kind]
    for key, record in theirs.state_dict()["state"].items():
        assert back[key]["step"] == 5
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            error = (back[key][name] - record[name]).abs().max()
            assert error <= (0 if key == 1 else limit) * record[name].abs().max()
    stepped(ours, 1, start=5)


def changed(state: dict[str, Any], **values: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    state["param_groups"][0].update(values)
    return state


def with_record(state: dict[str, Any], key: int, **values: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    for name, value in values.items():
        if value is None:
            del state["state"][key][name]
        else:
            state["state"][key][name] = value
    return state


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    optimizer = AdamW8bit(parameters(), lr=0.01)
    stepped(optimizer, 2)
    good = through_a_file(optimizer.state_dict())
    other = AdamW8bit([parameter(35, 512), *parameters()[1:]])
    uneven = AdamW8bit([*parameters()[:2], parameter(75, 70)])
    four, short, two = AdamW4bit(parameters()), AdamW8bit(parameters()[:1]), parameters()
    blocks = AdamW8bit(parameters(), block_size=64)
    groups = AdamW8bit([{"params": two[:1]}, {"params": two[1:]}])
    torchs, sgd = torch.optim.AdamW(parameters()), torch.optim.SGD(parameters(), momentum=0.9)
    for each in (other, uneven, four, short, blocks, groups, torchs, sgd):
        stepped(each, 1)
    codes = good["state"][0]["exp_avg_codes"]
    cases = [
        (four.state_dict(), "holds the state of AdamW4bit, this is AdamW8bit"),
        (torchs.state_dict(), r"loads with load_full_state_dict\(\)"),
        (sgd.state_dict(), "no state of an optimizer of ao-optim"),
        (blocks.state_dict(), "block_size=64, the optimizer has 256"),
        (changed(good, state_bits=4), "state_bits=4, the optimizer has 8"),
        (other.state_dict(), r"is that of a parameter of shape \(35, 512\)"),
        (uneven.state_dict(), r"parameter 2 holds exp_avg of shape \(75, 70\), expected \(70, 75"),
        (short.state_dict(), "has 1 parameters, the optimizer's has 3"),
        (groups.state_dict(), "2 parameter groups, the optimizer has 1"),
        ({"state": {}}, "'param_groups'; this one has state"),
        ({}, "this one has nothing"),
        (with_record(good, 0, exp_avg_scale=None), "lacks exp_avg_scale"),
        (with_record(good, 0, more=codes), "holds more, which does not belong"),
        (
            with_record(good, 0, exp_avg_codes=codes[1:]),
            r"exp_avg_codes of shape \(69, 1, 256\), expected",
        ),
        (with_record(good, 0, exp_avg_codes=codes.int()), "and torch.int32, expected"),
        (with_record(good, 0, exp_avg_codes=[1]), "holds a list as exp_avg_codes"),
        (with_record(good, 1, exp_avg=torch.zeros(99)), r"exp_avg of shape \(99,\)"),
        (with_record(good, 2, exp_avg=None), "parameter 2 lacks"),
        (with_record(good, 2, exp_avg=torch.zeros(70, 75).int()), "holds exp_avg, which does not"),
        (with_record(good, 1, step=torch.tensor(-1.0)), "has step -1.0, a count is expected"),
        (with_record(good, 1, step=torch.tensor(torch.nan)), "a count is expected"),
        ({**good, "state": {**good["state"], 1: 3}}, "parameter 1 is a int, not a dict"),
        ({**good, "state": {**good["state"], 9: {}}}, "has state for 9"),
        (changed(good, betas=(3.0, 0.9)), "betas are two numbers"),
    ]
    lacking = copy.deepcopy(good)
    del lacking["param_groups"][0]["seed"]
    cases.append((lacking, "group 0 of the state dict lacks seed"))
    before, options = all_bits(optimizer), {**optimizer.param_groups[0]}
    for state, words in cases:
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict(state)
        assert all_bits(optimizer) == before, words
        assert optimizer.param_groups[0] == options
    optimizer.load_state_dict(good)


def test_full_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    optimizer = AdamW8bit(parameters(), lr=0.01)
    stepped(optimizer, 2)
    theirs, adam = torch.optim.AdamW(parameters()), torch.optim.Adam(parameters())
    sgd, other = (
        torch.optim.SGD(parameters()),
        torch.optim.AdamW([parameter(75, 70), *parameters()[1:]]),
    )
    for each in (theirs, adam, sgd, other):
        stepped(each, 1)
    good = theirs.state_dict()
    cases = [
        (adam.state_dict(), "that of Adam, AdamW8bit takes that of AdamW"),
        (sgd.state_dict(), "group 0 lacks betas, eps, amsgrad"),
        (optimizer.state_dict(), "it is quantized"),
        (other.state_dict(), r"exp_avg of parameter 0 has shape \(75, 70\), the parameter has"),
        (changed(good, amsgrad=True), "lacks max_exp_avg_sq; it has step, exp_avg"),
        (with_record(good, 0, exp_avg_sq=None), "lacks exp_avg_sq"),
        (
            with_record(good, 1, exp_avg=torch.zeros(100, dtype=torch.uint8)),
            "not a tensor of float",
        ),
        (with_record(good, 1, step=torch.tensor(0.5)), "a count is expected"),
        (changed(good, lr=-1.0), "lr is 0 or more"),
    ]
    before = all_bits(optimizer)
    for state, words in cases:
        with pytest.raises(ValueError, match=words):
            optimizer.load_full_state_dict(state)
        assert all_bits(optimizer) == before, words
    with pytest.raises(ValueError, match="that of AdamW, Adam8bit takes that of Adam"):
        ao_optim.Adam8bit(parameters()).load_full_state_dict(good)
    with pytest.raises(ValueError, match="that of AdamW, Adam8bit takes that of Adam"):
        ao_optim.Adam8bit(parameters()).load_full_state_dict(optimizer.full_state_dict())


def test_lion_and_muon_in_full_precision() -> None:
    """Codes survive full precision; torch.optim.Muon goes on from it, and back. Lion's is exp_avg,
    and nothing else loads there."""
    for kind, moment in ((Lion8bit, "exp_avg"), (Muon, "momentum_buffer")):
        optimizer = kind([parameter(70, 256), parameter(80, 64, seed=1)], lr=0.01)
        stepped(optimizer, 3)
        full = through_a_file(optimizer.full_state_dict())
        assert set(full["state"][0]) == {"step", moment}
        assert full["state"][0][moment].shape == (70, 256)
        again = kind([parameter(70, 256), parameter(80, 64, seed=1)])
        again.load_full_state_dict(full)
        assert again.param_groups[0]["lr"] == 0.01
        for old, new in zip(optimizer.state.values(), again.state.values(), strict=True):
            assert bits_of([new[f"{moment}_codes"]]) == bits_of([old[f"{moment}_codes"]])
            assert new["step"] == 3
        before = all_bits(again)
        theirs = torch.optim.AdamW([parameter(70, 256), parameter(80, 64, seed=1)])
        stepped(theirs, 1)
        words = "has exp_avg_sq: this is no state of Lion" if kind is Lion8bit else "lacks momentum"
        with pytest.raises(ValueError, match=words):
            again.load_full_state_dict(theirs.state_dict())
        with pytest.raises(ValueError, match="it is quantized"):
            again.load_full_state_dict(optimizer.state_dict())
        assert all_bits(again) == before
    params = [nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
    torchs = torch.optim.Muon(params, lr=0.5)
    torchs.load_state_dict(copy.deepcopy(full))
    assert torchs.param_groups[0]["lr"] == 0.01
    stepped(torchs, 1, start=3)
    stepped(optimizer, 1, start=3)
    for ours, its in zip(optimizer.param_groups[0]["params"], params, strict=True):
        assert (ours - its).norm() < 1e-2 * (0.01 * its.numel() ** 0.5)
    back = Muon([nn.Parameter(p.detach().clone()) for p in params])
    del torchs.state[params[0]]["step"]  # which torch's own has not
    back.load_full_state_dict(torchs.state_dict())
    record = back.state[back.param_groups[0]["params"][0]]
    assert record["step"] == 0 and record["momentum_buffer_codes"].shape == (70, 256)


def test_a_truncated_file_changes_nothing(tmp_path: Path) -> None:
    optimizer = AdamW8bit(parameters(), lr=0.01)
    stepped(optimizer, 2)
    whole = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), whole)
    before = all_bits(optimizer)
    for part in (0.2, 0.9, 0.999):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole.read_bytes()[: int(part * whole.stat().st_size)])
        with pytest.raises((RuntimeError, OSError)):
            optimizer.load_state_dict(torch.load(cut, weights_only=True))
        assert all_bits(optimizer) == before
    optimizer.load_state_dict(torch.load(whole, weights_only=True))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of dcp, in one process
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_truncated_distributed_checkpoint(tmp_path: Path) -> None:
    """dcp writes into the tensors that it is given: copies of them keep the optimizer what it was,
    and the next whole checkpoint loads."""
    import torch.distributed.checkpoint as dcp

    optimizer = AdamW8bit(parameters(), lr=0.01)
    stepped(optimizer, 2)
    for name in ("whole", "cut"):
        dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path / name)
    for file in (tmp_path / "cut").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    stepped(optimizer, 1, start=2)
    before = all_bits(optimizer)
    state = {"optimizer": copy.deepcopy(optimizer.state_dict())}
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load(state, checkpoint_id=tmp_path / "cut")
    assert all_bits(optimizer) == before
    dcp.load(state, checkpoint_id=tmp_path / "whole")
    optimizer.load_state_dict(state["optimizer"])
    fresh = AdamW8bit(parameters(), lr=0.01)
    stepped(fresh, 2)
    for ours, its in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert bits_of(list(ours.values())) == bits_of(list(its.values()))
