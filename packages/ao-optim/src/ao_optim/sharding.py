"""Parameters that are DTensors: the part of this rank, and where it lies in the whole."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "element_index",
    "first_index",
    "is_sharded",
    "local_part",
    "local_part_as",
    "whole_like",
    "with_local",
]


def is_sharded(x: object) -> bool:
    """True for a DTensor; asks without importing torch.distributed.tensor, which takes a while."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_part(x: Any) -> Tensor:
    """What this rank holds of `x`; it shares memory with `x`."""
    part: Tensor = x.to_local() if is_sharded(x) else x
    return part


def local_part_as(x: Any, parameter: Any) -> Any:
    """The part of `x` that belongs to this rank's part of `parameter`, both of the same shape.

    A DTensor that is laid out in another way is redistributed; a plain tensor must hold the whole.
    """
    if not is_sharded(parameter):
        return x.full_tensor() if is_sharded(x) else x
    mesh, placements = parameter.device_mesh, parameter.placements
    if is_sharded(x):
        if x.placements != placements:
            x = x.redistribute(mesh, placements)
        return local_part(x)
    from torch.distributed.tensor import distribute_tensor

    return local_part(distribute_tensor(x, mesh, placements, src_data_rank=None))


def whole_like(part: Tensor, parameter: Any, *, shape: tuple[int, ...] | None = None) -> Tensor:
    """The inverse of `local_part`: a DTensor laid out as `parameter`, of this rank's part.

    shape: of the whole, whose first dimensions are sharded as the parameter's; None stands for the
    parameter's. The part stays where it is, on the CPU also if the mesh is of another device: so
    FSDP2 keeps parameters there. `DTensor.from_local` would move it.
    """
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    size = torch.Size(parameter.shape if shape is None else shape)
    stride = parameter.stride() if shape is None else torch.empty(size, device="meta").stride()
    meta = TensorMeta(size, stride, part.dtype)
    spec = DTensorSpec(parameter.device_mesh, parameter.placements, tensor_meta=meta)
    whole: Tensor = DTensor(part, spec, requires_grad=False)
    return whole


def with_local(x: Any, part: Tensor) -> Tensor:
    """A tensor laid out as `x`, of this rank's part, which stays where it is."""
    return whole_like(part, x, shape=tuple(x.shape)) if is_sharded(x) else part


def first_index(parameter: Any) -> int | None:
    """The row-major index in the whole parameter of the first element of this rank's part; None if
    the others do not follow it one by one."""
    if not is_sharded(parameter):
        return 0
    part, offsets = local_part(parameter), _offsets(parameter)
    cut = False  # one of the dimensions behind
    for dim in reversed(range(part.ndim)):
        if cut and part.shape[dim] > 1:
            return None
        cut |= part.shape[dim] != parameter.shape[dim]
    strides = (math.prod(parameter.shape[dim + 1 :]) for dim in range(part.ndim))
    return sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))


def _offsets(parameter: Any) -> tuple[int, ...]:
    """Where this rank's part of a DTensor begins in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return tuple(offsets)


def element_index(parameter: Any) -> Tensor:
    """Of each element of this rank's part, its row-major index in the whole parameter (int64)."""
    part = local_part(parameter)
    offsets = _offsets(parameter) if is_sharded(parameter) else (0,) * part.ndim
    index = torch.zeros((), dtype=torch.int64, device=part.device)
    for dim, (size, offset) in enumerate(zip(part.shape, offsets, strict=True)):
        stride = math.prod(parameter.shape[dim + 1 :])
        places = (torch.arange(size, device=part.device) + offset) * stride
        index = index[..., None] + places
    return index.view(part.shape)
