"""The state of one parameter: a dict of plain tensors.

    step                 float32, 0-d, on the CPU
    exp_avg              full precision: float32 (float64 for float64 parameters), the parameter's
    exp_avg_sq             shape
    exp_avg_codes        quantized instead: (B, n) codes in the storage of the format,
    exp_avg_scale          (B) float32; B blocks of n elements, see `ao_core.moments`
    exp_avg_sq_codes
    exp_avg_sq_scale
    shape                quantized only: the parameter's shape, int64, on the CPU

amsgrad adds max_exp_avg_sq in the same way. Of a DTensor the shape and the tensors are those of the
rank's own part. A parameter with fewer than 4096 elements, counted over all ranks, keeps full
precision whatever is asked for, so that precision does not depend on how a model is sharded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import (
    StateBits,
    dequantize_moment,
    get_format,
    quantize_moment,
    zero_moment,
)

from .sharding import local_part

__all__ = [
    "SMALL",
    "Layout",
    "Record",
    "layout_for",
    "layout_of",
    "mismatch",
    "new_record",
    "read_moment",
    "write_moment",
]

SMALL = 4096  # elements; below, the state of a parameter keeps full precision
Record = dict[str, Tensor]
SIGNED = {"exp_avg": True, "momentum_buffer": True, "exp_avg_sq": False, "max_exp_avg_sq": False}


@dataclass(frozen=True)
class Layout:
    """What the record of a parameter must look like; `bits` is 32 for full precision."""

    bits: StateBits
    block_size: int
    moments: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name -> dtype and shape of each tensor of the record."""
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"step": (torch.float32, ())}
        if self.bits == 32:
            return found | dict.fromkeys(self.moments, (self.dtype, self.shape))
        row = get_format(self.bits)
        blocks = -(-torch.Size(self.shape).numel() // self.block_size)
        for name in self.moments:
            found[f"{name}_codes"] = (row.storage, (blocks, row.stored_width(self.block_size)))
            found[f"{name}_scale"] = (torch.float32, (blocks,))
        return found | {"shape": (torch.int64, (len(self.shape),))}


def layout_of(parameter: Tensor, group: Mapping[str, Any]) -> Layout:
    """The layout that the options of its group ask for a parameter."""
    moments = ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())
    return Layout(
        bits=32 if parameter.numel() < SMALL else group["state_bits"],
        block_size=group["block_size"],
        moments=moments,
        shape=tuple(local_part(parameter).shape),
        dtype=torch.float64 if parameter.dtype == torch.float64 else torch.float32,
    )


def layout_for(optimizer: Any, parameter: Tensor, group: Mapping[str, Any]) -> Layout:
    """The layout of an optimizer's records: `layout_of`, or what its own `_layout_of` says where it
    keeps other moments than Adam."""
    layout: Layout = getattr(optimizer, "_layout_of", layout_of)(parameter, group)
    return layout


def new_record(layout: Layout, device: torch.device) -> dict[str, Tensor]:
    """The record before the first step: moments of zeros."""
    record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    for name in layout.moments:
        if layout.bits == 32:
            record[name] = torch.zeros(layout.shape, dtype=layout.dtype, device=device)
            continue
        codes, scale = zero_moment(
            torch.Size(layout.shape).numel(),
            bits=layout.bits,
            signed=SIGNED[name],
            block_size=layout.block_size,
            device=device,
        )
        record |= {f"{name}_codes": codes, f"{name}_scale": scale}
    if layout.bits != 32:
        record["shape"] = torch.tensor(layout.shape, dtype=torch.int64, device="cpu")
    return record


def encoded_moment(name: str, x: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors of the record that hold the moment `x`."""
    if layout.bits == 32:
        return {name: x.to(layout.dtype)}
    codes, scale = quantize_moment(
        x, bits=layout.bits, signed=SIGNED[name], block_size=layout.block_size
    )
    return {f"{name}_codes": codes, f"{name}_scale": scale}


def read_moment(record: Mapping[str, Tensor], name: str, layout: Layout) -> Tensor:
    """A moment in the layout's dtype and shape; a copy unless it is stored in full precision."""
    if layout.bits == 32:
        return record[name]
    blocks = dequantize_moment(
        record[f"{name}_codes"],
        record[f"{name}_scale"],
        bits=layout.bits,
        signed=SIGNED[name],
        block_size=layout.block_size,
    )
    numel = torch.Size(layout.shape).numel()
    return blocks.flatten()[:numel].view(layout.shape).to(layout.dtype)


def write_moment(record: Mapping[str, Tensor], name: str, x: Tensor, layout: Layout) -> None:
    """Store a moment into the tensors that the record has."""
    for key, value in encoded_moment(name, x, layout).items():
        if value is not record[key]:
            record[key].copy_(value)


def mismatch(record: Any, layout: Layout) -> str | None:
    """What of the record does not fit the layout, in words; None if it fits."""
    if not isinstance(record, Mapping):
        return f"is a {type(record).__name__}, not a dict of tensors"
    expected = layout.tensors()
    missing = [name for name in expected if name not in record]
    unknown = [str(name) for name in record if name not in expected]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"holds {', '.join(unknown)}, which does not belong there"] if unknown else []
        return " and ".join(parts)
    for name, (dtype, shape) in expected.items():
        value = record[name]
        if not isinstance(value, Tensor):
            return f"holds a {type(value).__name__} as {name}, not a tensor"
        if value.dtype != dtype or tuple(value.shape) != shape:
            return (
                f"holds {name} of shape {tuple(value.shape)} and {value.dtype}, "
                f"expected {shape} and {dtype}"
            )
    if layout.bits != 32 and tuple(record["shape"].tolist()) != layout.shape:
        saved = tuple(record["shape"].tolist())
        return f"is that of a parameter of shape {saved}, the parameter here has {layout.shape}"
    return None
