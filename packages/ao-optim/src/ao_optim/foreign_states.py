"""State dicts of torchao's and bitsandbytes' low-bit optimizers, in full precision.

    optimizer.load_full_state_dict(from_torchao_state_dict(torch.load("theirs.pt")))

What both store is a code a element and a factor a block of elements in a row:

    x = qmap[code] * factor           torchao: codes, scale, qmap; two codes a byte with 4 bits, the
                                      first in the upper half; e4m3 codes have no qmap
                                      bitsandbytes: state1, absmax1, qmap1 (and 2)

The result is what torch.optim.AdamW's `state_dict()` is, and loads there, too. Neither library is
needed for that, but torchao's tensors can only be unpickled where torchao is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .loading import TORCH_OPTIONS
from .sharding import is_sharded, local_part, with_local

__all__ = ["from_bitsandbytes_state_dict", "from_torchao_state_dict"]

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
NESTED = "__bnb_optimizer_quant_state__"
BNB_BLOCK = 256


def from_torchao_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of torchao's Adam(W)8bit, Adam(W)4bit, Adam(W)Fp8 or _AdamW -> that of
    torch.optim.AdamW, float32 moments; of DTensors it holds DTensors.

    ValueError says what is no such state. The class is not in it: load it into one that applies
    weight decay in the same way.
    """
    return _converted(state_dict, _torchao_record, "torchao")


def from_bitsandbytes_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of an optimizer of bitsandbytes with 8-bit blockwise or 32-bit state -> that
    of torch.optim.AdamW, float32 moments: state1 is exp_avg, state2, where there is one,
    exp_avg_sq. So Lion has exp_avg alone.

    ValueError says what is no such state; AdEMAMix and state that is not blockwise are none.
    """
    return _converted(state_dict, _bitsandbytes_record, "bitsandbytes")


def _converted(
    state_dict: Mapping[str, Any], record_of: Callable[[str, Any], dict[str, Tensor]], source: str
) -> dict[str, Any]:
    for key in ("state", "param_groups"):
        if key not in state_dict:
            found = ", ".join(map(str, state_dict)) or "nothing"
            raise ValueError(f"a state dict of an optimizer has {key!r}; this one has {found}")
    groups = []
    for number, group in enumerate(state_dict["param_groups"]):
        absent = [name for name in ("lr", "betas", "eps", "weight_decay") if name not in group]
        if absent:
            raise ValueError(
                f"this is no state of an Adam or Lion of {source}: group {number} lacks "
                f"{', '.join(absent)}"
            )
        if group.get("t_alpha") is not None or group.get("alpha"):
            raise ValueError(f"group {number} is of AdEMAMix, whose state has no counterpart")
        lr = group["lr"]
        new = {
            "lr": lr.item() if isinstance(lr, Tensor) else lr,
            "betas": tuple(group["betas"][:2]),
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "amsgrad": bool(group.get("amsgrad", False)),
            "maximize": bool(group.get("maximize", False)),
            **TORCH_OPTIONS,
            "params": list(group["params"]),
        }
        kept = ("initial_lr", "param_names")
        groups.append(new | {name: group[name] for name in kept if name in group})
    state = {
        key: record_of(f"the state of parameter {key}", record)
        for key, record in state_dict["state"].items()
        if record
    }
    return {"state": state, "param_groups": groups}


def _torchao_record(what: str, record: Any) -> dict[str, Tensor]:
    _check_record(what, record, ("step", "exp_avg", "exp_avg_sq"), "torchao")
    new = {"step": _step(what, record["step"])}
    for name in MOMENTS:
        if name in record:
            new[name] = _torchao_moment(f"{name} of {what}", record[name])
    return new


def _torchao_moment(what: str, value: Any) -> Tensor:
    if is_sharded(value):
        return with_local(value, _torchao_moment(what, local_part(value)))
    kind = type(value).__name__
    if kind in ("OptimState8bit", "OptimState4bit"):
        codes = value.codes
        if kind == "OptimState4bit":
            codes = torch.stack((codes >> 4, codes & 15), dim=-1)
        return _decoded(what, codes, value.scale, value.qmap).view(tuple(value.shape))
    if kind == "OptimStateFp8":
        return _decoded(what, value.codes, value.scale, None).view(tuple(value.shape))
    if type(value) in (Tensor, torch.nn.Parameter) and value.is_floating_point():
        return value.detach().float()
    raise ValueError(
        f"{what} is a {kind}, not an OptimState8bit, OptimState4bit, OptimStateFp8 or a tensor of "
        "floating point numbers"
    )


def _bitsandbytes_record(what: str, record: Any) -> dict[str, Tensor]:
    if isinstance(record, Mapping) and NESTED in record:
        record = {**record, **record[NESTED]}
    _check_record(what, record, ("step", "state1"), "bitsandbytes")
    new = {"step": _step(what, record["step"])}
    for number, name in ((1, "exp_avg"), (2, "exp_avg_sq")):
        value = record.get(f"state{number}")
        if value is None:
            continue
        if value.dtype != torch.uint8:
            new[name] = value.detach().float()
            continue
        factors, qmap = record.get(f"absmax{number}"), record.get(f"qmap{number}")
        if factors is None or qmap is None:
            raise ValueError(
                f"{what} has 8-bit state{number} without absmax{number} and qmap{number}: it is "
                "not blockwise. Train on with block_wise=True, or start without state"
            )
        blocks = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % BNB_BLOCK))
        x = _decoded(f"state{number} of {what}", blocks, factors, qmap)
        new[name] = x.flatten()[: value.numel()].view(value.shape)
    return new


def _decoded(what: str, codes: Tensor, factors: Tensor, qmap: Tensor | None) -> Tensor:
    """(B, n) float32 of codes of B blocks, B factors and the values of the codes."""
    B = factors.numel()
    if B == 0 or codes.numel() % B:
        raise ValueError(f"{what} has {codes.numel()} codes and {B} factors of blocks")
    codes = codes.detach().reshape(B, -1)
    if qmap is not None and len(qmap) <= 16 and bool((codes >= len(qmap)).any()):
        raise ValueError(f"{what} has codes beyond its {len(qmap)} values")
    values = codes.float() if qmap is None else qmap.detach().float()[codes.int()]
    return values * factors.detach().float()[:, None]


def _check_record(what: str, record: Any, names: tuple[str, ...], source: str) -> None:
    if not isinstance(record, Mapping):
        raise ValueError(f"{what} is a {type(record).__name__}, not a dict")
    absent = [name for name in names if name not in record]
    if absent:
        has = ", ".join(map(str, record))
        raise ValueError(f"{what} is none of {source}: it lacks {', '.join(absent)} and has {has}")


def _step(what: str, step: Any) -> Tensor:
    value = torch.as_tensor(step, dtype=torch.float32).detach().to("cpu", copy=True)
    if value.numel() != 1 or not value >= 0 or value != value.round():
        raise ValueError(f"{what} has step {step}, a count is expected")
    return value.reshape(())
