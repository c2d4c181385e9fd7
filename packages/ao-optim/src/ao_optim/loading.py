"""State dicts in and out: everything is checked, and built anew, before an optimizer changes.

Two kinds: an optimizer's own (`state_dict()`, records as `ao_optim.record` documents them), and
full precision, as torch.optim has it: the step, and moments by their names in the parameter's shape
(of Adam exp_avg, exp_avg_sq, max_exp_avg_sq if amsgrad).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .record import SIGNED, encoded_moment, layout_for, mismatch, read_moment
from .resharding import local_record, saved_record
from .sharding import local_part, local_part_as, whole_like

__all__ = [
    "TORCH_OPTIONS",
    "FullState",
    "checked_full_state",
    "checked_state",
    "full_state",
    "own_state",
]

# what torch.optim.Adam and AdamW have besides their shared options, at their defaults
TORCH_OPTIONS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


class FullState(NamedTuple):
    """What the state of an optimizer in full precision is."""

    source: str  # whose it is, in words
    options: tuple[str, ...]  # of a group
    others: Mapping[str, Any]  # that torch's groups have besides, at their defaults
    decoupled: bool | None = None  # weight decay, where there are both kinds
    counts: bool = True  # whether torch's record has the step


def own_state(optimizer: Optimizer, pack: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `pack`, which is torch.optim's `state_dict`, makes of the optimizer, with records as
    `ao_optim.resharding` has them."""
    own = optimizer.state
    saved: defaultdict[Any, Any] = defaultdict(dict)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if own.get(parameter):
                layout = layout_for(optimizer, parameter, group)
                saved[parameter] = saved_record(own[parameter], parameter, layout)
    optimizer.state = saved
    try:
        return pack()
    finally:
        optimizer.state = own


def checked_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's own state dict -> the state to set: {"state", "param_groups"}."""
    kind = type(optimizer).__name__
    groups = _matched_groups(optimizer, state_dict)
    for number, (ours, saved) in enumerate(groups):
        found = saved.get("optimizer")
        if found != kind:
            what = f"the state of {found}" if found else "no state of an optimizer of ao-optim"
            raise ValueError(
                f"the state dict holds {what}, this is {kind}; full precision state, such as that "
                "of torch.optim.AdamW, loads with load_full_state_dict(), and full_state_dict() "
                "gives it"
            )
        absent = sorted(set(ours) - set(saved) - {"params", "param_names", "initial_lr"})
        if absent:
            raise ValueError(f"group {number} of the state dict lacks {', '.join(absent)}")
        for name in ("state_bits", "block_size"):
            if saved[name] != ours[name]:
                raise ValueError(
                    f"group {number} of the state dict has {name}={saved[name]!r}, the optimizer "
                    f"has {ours[name]!r}; build it with the same, or convert: full_state_dict() of "
                    "the one, load_full_state_dict() of the other"
                )
    state: defaultdict[Any, Any] = defaultdict(dict)
    for key, parameter, saved, record in _records(groups, state_dict):
        layout = layout_for(optimizer, parameter, saved)
        try:
            record = local_record(record, parameter, layout)
            problem = mismatch(record, layout)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ValueError(f"the state of parameter {key} {problem}")
        _check_step(key, record["step"])
        device = local_part(parameter).device
        state[parameter] = {
            name: value.detach().to("cpu" if name in ("step", "shape") else device, copy=True)
            for name, value in record.items()
        }
    return {"state": state, "param_groups": [_merged(ours, saved) for ours, saved in groups]}


def checked_full_state(
    optimizer: Optimizer, state_dict: Mapping[str, Any], *, kind: FullState
) -> dict[str, Any]:
    """Full precision state -> the state to set, quantized as the optimizer's groups say."""
    decoupled = kind.decoupled
    groups = _matched_groups(optimizer, state_dict)
    merged = []
    for number, (ours, saved) in enumerate(groups):
        absent = [name for name in kind.options if name not in saved]
        if absent or "optimizer" in saved:
            why = f"group {number} lacks {', '.join(absent)}" if absent else "it is quantized"
            raise ValueError(f"this is no state of {kind.source}: {why}")
        if decoupled is not None and saved.get("decoupled_weight_decay", decoupled) != decoupled:
            kinds = ("Adam", "AdamW") if decoupled else ("AdamW", "Adam")
            raise ValueError(
                f"the state dict is that of {kinds[0]}, {type(optimizer).__name__} takes that of "
                f"{kinds[1]}: they apply weight decay in different ways"
            )
        merged.append({**ours, **copy.deepcopy({name: saved[name] for name in kind.options})})
    state: defaultdict[Any, Any] = defaultdict(dict)
    target = {id(ours): new for (ours, _), new in zip(groups, merged, strict=True)}
    options = {id(p): target[id(ours)] for ours, _ in groups for p in ours["params"]}
    for key, parameter, _, record in list(_records(groups, state_dict)):
        layout = layout_for(optimizer, parameter, options[id(parameter)])
        _check_full_record(key, record, parameter, layout.moments, kind)
        device = local_part(parameter).device
        new = {"step": _as_step(record.get("step", 0))}
        for name in layout.moments:
            part = local_part_as(record[name].detach(), parameter)
            part = part.to(device=device, dtype=layout.dtype, copy=True).view(layout.shape)
            new |= encoded_moment(name, part, layout)
        if layout.bits != 32:
            new["shape"] = torch.tensor(layout.shape, dtype=torch.int64)
        state[parameter] = new
    return {"state": state, "param_groups": merged}


def full_state(optimizer: Optimizer, *, kind: FullState) -> dict[str, Any]:
    """The state in full precision, with the keys of the `state_dict()` of torch's optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    saved_groups, place = [], 0
    for group in optimizer.param_groups:
        saved = copy.deepcopy({name: group[name] for name in kind.options}) | dict(kind.others)
        if kind.decoupled is not None:
            saved["decoupled_weight_decay"] = kind.decoupled
        if "initial_lr" in group:
            saved["initial_lr"] = copy.deepcopy(group["initial_lr"])
        saved["params"] = list(range(place, place + len(group["params"])))
        for key, parameter in zip(saved["params"], group["params"], strict=True):
            record = optimizer.state.get(parameter)
            if record:
                layout = layout_for(optimizer, parameter, group)
                state[key] = {"step": record["step"].clone()}
                for name in layout.moments:
                    moment = read_moment(record, name, layout)
                    moment = moment.clone() if layout.bits == 32 else moment
                    state[key][name] = whole_like(moment, parameter)
        place += len(group["params"])
        saved_groups.append(saved)
    return {"state": state, "param_groups": saved_groups}


Group = dict[str, Any]


def _matched_groups(
    optimizer: Optimizer, state_dict: Mapping[str, Any]
) -> list[tuple[Group, Group]]:
    """Pairs of a group of the optimizer and of the state dict, with as many parameters."""
    for key in ("state", "param_groups"):
        if key not in state_dict:
            found = ", ".join(map(str, state_dict)) or "nothing"
            raise ValueError(f"a state dict of an optimizer has {key!r}; this one has {found}")
    ours, saved = optimizer.param_groups, state_dict["param_groups"]
    if len(ours) != len(saved):
        raise ValueError(
            f"the state dict has {len(saved)} parameter groups, the optimizer has {len(ours)}"
        )
    for number, (mine, its) in enumerate(zip(ours, saved, strict=True)):
        n, m = len(its.get("params", ())), len(mine["params"])
        if n != m:
            raise ValueError(
                f"group {number} of the state dict has {n} parameters, the optimizer's has {m}"
            )
    return list(zip(ours, saved, strict=True))


def _records(
    groups: list[tuple[Group, Group]], state_dict: Mapping[str, Any]
) -> list[tuple[Any, Tensor, Group, Any]]:
    """Key, parameter, saved group and record of everything that has state."""
    found, known = [], set()
    for ours, saved in groups:
        for key, parameter in zip(saved["params"], ours["params"], strict=True):
            known.add(key)
            if key in state_dict["state"]:
                found.append((key, parameter, saved, state_dict["state"][key]))
    unknown = [str(key) for key in state_dict["state"] if key not in known]
    if unknown:
        raise ValueError(
            f"the state dict has state for {', '.join(unknown)}, which no group of it names"
        )
    return found


def _merged(ours: Group, saved: Group) -> Group:
    """The saved group with the optimizer's own parameters and, if none were saved, their names."""
    new = copy.deepcopy({name: value for name, value in saved.items() if name != "params"})
    if "param_names" in ours:
        new.setdefault("param_names", ours["param_names"])
    return {"params": ours["params"], **new}


def _check_step(key: Any, step: Any) -> None:
    value = step.item() if isinstance(step, Tensor) and step.numel() == 1 else step
    if not isinstance(value, int | float) or not value >= 0 or value != int(value):
        raise ValueError(f"the state of parameter {key} has step {step}, a count is expected")


def _as_step(step: Any) -> Tensor:
    return torch.as_tensor(step, dtype=torch.float32).detach().reshape(()).to("cpu", copy=True)


def _check_full_record(
    key: Any, record: Any, parameter: Tensor, moments: tuple[str, ...], kind: FullState
) -> None:
    if not isinstance(record, Mapping):
        raise ValueError(f"the state of parameter {key} is a {type(record).__name__}, not a dict")
    expected = ("step", *moments) if kind.counts else moments
    absent = [name for name in expected if name not in record]
    if absent:
        has = ", ".join(map(str, record)) or "nothing"
        raise ValueError(f"the state of parameter {key} lacks {', '.join(absent)}; it has {has}")
    others = sorted((SIGNED.keys() & record.keys()) - {*moments, "max_exp_avg_sq"})
    if others:
        raise ValueError(
            f"the state of parameter {key} has {', '.join(others)}: this is no state of "
            f"{kind.source}"
        )
    _check_step(key, record.get("step", 0))
    for name in moments:
        value = record[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{name} of parameter {key} is not a tensor of floating point numbers")
        if value.shape != parameter.shape:
            raise ValueError(
                f"{name} of parameter {key} has shape {tuple(value.shape)}, the parameter has "
                f"{tuple(parameter.shape)}"
            )
