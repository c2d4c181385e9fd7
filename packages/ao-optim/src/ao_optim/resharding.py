"""Records in state dicts: global tensors, which any mesh can load.

In memory a record (`ao_optim.record`) holds this rank's part, in blocks of n elements in a row. In
a state dict its tensors are those of the whole parameter, DTensors if the parameter is one, so that
torch.distributed.checkpoint can cut them for another number of ranks:

    rows are whole blocks    codes (*grid, width) uint8 and scale (*grid) float32, laid out as the
                             parameter; grid is the parameter's shape (..., K / n) or (N, rest / n)
    else                     the moments in full precision, of the parameter's shape

Which it is depends on shape and block size alone, but for the last dimension: where that is sharded
in other than whole blocks, it is full precision, too. Parameters of one dimension have no rows.
A record made from full precision that came from codes with the same blocks has the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import get_format

from .record import SIGNED, Layout, dequantize_moment, encoded_moment, read_moment
from .sharding import is_sharded, local_part_as, whole_like

__all__ = ["local_record", "saved_record"]


def saved_record(record: Mapping[str, Tensor], parameter: Any, layout: Layout) -> dict[str, Tensor]:
    """The record as a state dict holds it. Codes and scales share memory with the record."""
    saved = {"step": record["step"]}
    grid = None if layout.bits == 32 else block_grid(parameter, layout)
    if grid is None:
        for name in layout.moments:
            saved[name] = whole_like(read_moment(record, name, layout), parameter)
        return saved
    local = _local_grid(layout, grid)
    for name in layout.moments:
        codes, scale = record[f"{name}_codes"], record[f"{name}_scale"]
        width = codes.shape[1]
        codes = codes.view(torch.uint8).view(*local, width)
        saved[f"{name}_codes"] = whole_like(codes, parameter, shape=(*grid, width))
        saved[f"{name}_scale"] = whole_like(scale.view(local), parameter, shape=grid)
    saved["shape"] = torch.tensor(parameter.shape, dtype=torch.int64)
    return saved


def local_record(saved: Any, parameter: Any, layout: Layout) -> Any:
    """The inverse: this rank's record, of tensors that may be those of `saved`.

    What is missing or foreign stays as it is, for `ao_optim.record.mismatch` to name. ValueError
    says what does not fit the whole parameter.
    """
    if not isinstance(saved, Mapping):
        return saved
    record = dict(saved)
    for name in layout.moments:
        if isinstance(saved.get(name), Tensor):
            _check_shape(name, saved[name], tuple(parameter.shape))
            part = local_part_as(saved[name].detach(), parameter)
            if layout.bits == 32:
                record[name] = part
            elif part.is_floating_point():
                del record[name]
                record |= requantized(name, part, layout)
                record["shape"] = torch.tensor(parameter.shape, dtype=torch.int64)
    if layout.bits != 32:
        _localize_shape(record, parameter, layout)
        _localize_blocks(record, saved, parameter, layout)
    ordered = [name for name in layout.tensors() if name in record]
    return {name: record[name] for name in (*ordered, *record)}


def _localize_shape(record: dict[str, Any], parameter: Any, layout: Layout) -> None:
    if isinstance(record.get("shape"), Tensor):
        shape = tuple(record["shape"].tolist())
        if shape != tuple(parameter.shape):
            raise ValueError(
                f"is that of a parameter of shape {shape}, the parameter here has "
                f"{tuple(parameter.shape)}"
            )
        record["shape"] = torch.tensor(layout.shape, dtype=torch.int64)


def _localize_blocks(
    record: dict[str, Any], saved: Mapping[str, Any], parameter: Any, layout: Layout
) -> None:
    grid, row = block_grid(parameter, layout), get_format(layout.bits)
    if grid is None:
        return
    width = row.stored_width(layout.block_size)
    for name in layout.moments:
        codes, scale = saved.get(f"{name}_codes"), saved.get(f"{name}_scale")
        if isinstance(codes, Tensor):
            _check_shape(f"{name}_codes", codes, (*grid, width))
            if codes.dtype in (torch.uint8, row.storage):
                codes = local_part_as(codes.detach().view(torch.uint8), parameter)
                codes = codes.reshape(-1, width).view(row.storage)
            record[f"{name}_codes"] = codes
        if isinstance(scale, Tensor):
            _check_shape(f"{name}_scale", scale, grid)
            record[f"{name}_scale"] = local_part_as(scale.detach(), parameter).reshape(-1)


def block_grid(parameter: Any, layout: Layout) -> tuple[int, ...] | None:
    """The whole parameter's blocks, in dimensions that are sharded as the parameter's are; None if
    there are no such."""
    shape, n = tuple(parameter.shape), layout.block_size
    if len(shape) < 2 or not all(shape):
        return None
    if shape[-1] % n == 0:
        grid = (*shape[:-1], shape[-1] // n)
    elif math.prod(shape[1:]) % n == 0:
        grid = (shape[0], math.prod(shape[1:]) // n)
    else:
        return None
    if not is_sharded(parameter):
        return grid
    parts = 1  # of the last dimension of the grid
    for dim, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            continue
        cut = placement.dim % len(shape)
        if cut >= len(grid) - 1:
            parts *= parameter.device_mesh.size(dim)
            if len(grid) != len(shape):  # the last dimension of the grid is several
                return None
    return grid if grid[-1] % parts == 0 else None


def _local_grid(layout: Layout, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks of this rank's part, in the dimensions of `grid`."""
    shape, n = layout.shape, layout.block_size
    if len(grid) == len(shape) and shape[-1] % n == 0:
        return (*shape[:-1], shape[-1] // n)
    return (shape[0], math.prod(shape[1:]) // n)


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(f"holds {name} of shape {tuple(value.shape)}, expected {expected}")


def requantized(name: str, x: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors of the record that hold the moment `x`; if it was decoded from blocks like the
    layout's, those that it was decoded from.

    A scale is found from the largest element of its block, and may be a float32 or two beside the
    one that the element was made with: of these one that gives the block's elements is taken.
    """
    found = encoded_moment(name, x, layout)
    codes, scale = found[f"{name}_codes"], found[f"{name}_scale"]

    flat = x.float().flatten()

    def fits(scale: Tensor) -> Tensor:
        """Of each block, whether its codes times the scale are its elements."""
        decoded = dequantize_moment(
            codes,
            scale,
            bits=layout.bits,
            signed=SIGNED[name],
            block_size=layout.block_size,
        )
        same = torch.ones_like(decoded, dtype=torch.bool)  # also what fills up the last block
        same.view(-1)[: flat.numel()] = decoded.view(-1)[: flat.numel()] == flat
        return same.all(dim=1)

    for end in (0.0, torch.inf):
        candidate = found[f"{name}_scale"]
        for _ in range(2):  # roundings of the product and of the largest value's inverse
            candidate = torch.nextafter(candidate, torch.full_like(candidate, end))
            scale = torch.where(fits(scale) | ~fits(candidate), scale, candidate)
    found[f"{name}_scale"] = scale
    return found
