"""States that torchao 0.18.0 and bitsandbytes 0.50.2 made, from files: what they say that they hold
is what is loaded. tests/golden/make_foreign_states.py made them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from steps import parameter, stepped
from torch import Tensor

import ao_optim
from ao_optim import from_bitsandbytes_state_dict, from_torchao_state_dict

GOLDEN = Path(__file__).with_name("golden") / "foreign_states.safetensors"
TORCHAO = ("AdamW8bit", "AdamW4bit", "AdamWFp8")
BNB = ("AdamW8bit", "Lion8bit")


class OptimState8bit:
    """In the place of torchao's tensor of this name: the same attributes."""

    def __init__(self, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> None:
        self.shape = shape
        self.__dict__.update(tensors)


class OptimState4bit(OptimState8bit):
    pass


class OptimStateFp8(OptimState8bit):
    pass


STAND_INS = {each.__name__: each for each in (OptimState8bit, OptimState4bit, OptimStateFp8)}


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state dict as the library has it, and expected moments by parameter and field."""
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
        places = [key.split("/")[1:] for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118
        tensors = {"/".join(p): file.get_tensor("/".join((name, *p))) for p in places}
    state: dict[int, dict[str, Any]] = {0: {}, 1: {}}
    for key in (0, 1):
        for field in {p[1] for p in places if p[0] == str(key)}:
            kind = metadata.get(f"{name}/{key}/{field}")
            if kind is None:
                state[key][field] = tensors[f"{key}/{field}"]
            else:
                inner = {p[2]: tensors["/".join(p)] for p in places if p[:2] == [str(key), field]}
                state[key][field] = STAND_INS[kind](inner.pop("expected").shape, inner)
        if name.startswith("bitsandbytes"):
            step = int(state[key].pop("step"))
            state[key] = {"step": step, "__bnb_optimizer_quant_state__": state[key]}
    groups = json.loads(metadata[name])
    expected = {
        k.removesuffix("/expected"): x for k, x in tensors.items() if k.endswith("expected")
    }
    return {"state": state, "param_groups": groups}, expected


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao(name: str) -> None:
    state, expected = golden(f"torchao.{name}")
    full = from_torchao_state_dict(state)
    for field in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(full["state"][0][field], expected[f"0/{field}"])
        assert torch.equal(full["state"][1][field], state["state"][1][field])
    check_loads(full, getattr(ao_optim, name), (16, 256))


def test_bitsandbytes() -> None:
    """Blocks of 256 over rows of 257: the last block is shorter."""
    state, expected = golden("bitsandbytes.AdamW8bit")
    full = from_bitsandbytes_state_dict(state)
    nested = state["state"][1]["__bnb_optimizer_quant_state__"]
    for number, field in ((1, "exp_avg"), (2, "exp_avg_sq")):
        assert torch.equal(full["state"][0][field], expected[f"0/state{number}"])
        assert torch.equal(full["state"][1][field], nested[f"state{number}"])
    check_loads(full, ao_optim.AdamW8bit, (16, 257))
    state, expected = golden("bitsandbytes.Lion8bit")
    full = from_bitsandbytes_state_dict(state)
    assert set(full["state"][0]) == {"step", "exp_avg"} and full["state"][0]["step"] == 3
    assert torch.equal(full["state"][0]["exp_avg"], expected["0/state1"])
    lion = ao_optim.Lion8bit([parameter(16, 257), parameter(10, seed=1)])
    lion.load_full_state_dict(full)
    back = lion.full_state_dict()["state"]
    x = expected["0/state1"]
    assert (back[0]["exp_avg"] - x).abs().max() <= 0.016 * x.abs().max() and back[1]["step"] == 3
    stepped(lion, 1, start=3)


def check_loads(full: dict[str, Any], kind: Any, shape: tuple[int, ...]) -> None:
    """Into ours, within the format's error, and into torch's; both go on."""
    ours = kind([parameter(*shape), parameter(10, seed=1)])
    theirs = torch.optim.AdamW([parameter(*shape), parameter(10, seed=1)])
    ours.load_full_state_dict(full)
    theirs.load_state_dict(copy.deepcopy(full))
    for optimizer in (ours, theirs):
        group = optimizer.param_groups[0]
        assert abs(group["lr"] - 0.01) < 1e-9 and group["weight_decay"] == 0.1
        assert group["betas"] == (0.9, 0.999)
    back = ours.full_state_dict()["state"]
    limit = {8: 0.016, 4: 0.16, "fp8": 2.0**-4}[ours.param_groups[0]["state_bits"]]
    for field in ("exp_avg", "exp_avg_sq"):
        x = full["state"][0][field]
        assert (back[0][field] - x).abs().max() <= limit * x.abs().max()
        assert torch.equal(back[1][field], full["state"][1][field]) and back[0]["step"] == 3
    stepped(ours, 1, start=3)
    stepped(theirs, 1, start=3)


def test_what_is_none_of_theirs_is_refused() -> None:
    ao, _ = golden("torchao.AdamW4bit")
    bnb, _ = golden("bitsandbytes.AdamW8bit")
    torchs = torch.optim.SGD([parameter(8, 8)], momentum=0.9)
    stepped(torchs, 1)

    def changed(state: dict[str, Any], **values: Any) -> dict[str, Any]:
        state = copy.deepcopy(state)
        record = state["state"][0]
        record.get("__bnb_optimizer_quant_state__", record).update(values)
        return state

    few = copy.deepcopy(ao["state"][0]["exp_avg"])
    few.scale = few.scale[:-1]
    short = copy.deepcopy(ao["state"][0]["exp_avg"])
    short.qmap = short.qmap[:3]
    mix = copy.deepcopy(bnb)
    mix["param_groups"][0]["alpha"] = 5.0
    for convert, state, words in (
        (from_torchao_state_dict, {}, "this one has nothing"),
        (from_torchao_state_dict, torchs.state_dict(), "group 0 lacks betas, eps"),
        (from_torchao_state_dict, bnb, "is none of torchao: it lacks exp_avg, exp_avg_sq"),
        (from_torchao_state_dict, changed(ao, exp_avg=3), "exp_avg of the state of parameter 0 is"),
        (from_torchao_state_dict, changed(ao, exp_avg=few), "4096 codes and 31 factors"),
        (from_torchao_state_dict, changed(ao, exp_avg=short), "beyond its 3 values"),
        (from_torchao_state_dict, changed(ao, step=-1), "a count is expected"),
        (from_bitsandbytes_state_dict, ao, "is none of bitsandbytes: it lacks state1"),
        (from_bitsandbytes_state_dict, changed(bnb, absmax1=None), "it is not blockwise"),
        (from_bitsandbytes_state_dict, mix, "AdEMAMix"),
    ):
        with pytest.raises(ValueError, match=words):
            convert(state)
    optimizer = ao_optim.AdamW8bit([parameter(16, 128), parameter(10)])
    with pytest.raises(ValueError, match=r"has shape \(16, 257\), the parameter has \(16, 128\)"):
        optimizer.load_full_state_dict(from_bitsandbytes_state_dict(bnb))
    assert not optimizer.state
