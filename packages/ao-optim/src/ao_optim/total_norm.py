"""The norm of many tensors at once, of which some are parts of DTensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .sharding import is_sharded

__all__ = ["total_norm"]


def total_norm(parts: Iterable[tuple[Any, Tensor]], *, norm_type: float) -> Tensor:
    """The norm of order `norm_type` of everything, 0-d float32, the same on all ranks.

    parts: a parameter, and the norm of that order of what this rank holds of its gradient, 0-d.
    Parts of DTensors are combined over the dimensions of the mesh that they are sharded over; all
    ranks of a mesh call this with the same parameters in the same order.
    """
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter, norm in parts:
        key: tuple[Any, ...] = ()
        if is_sharded(parameter):
            sharded = [dim for dim, p in enumerate(parameter.placements) if not p.is_replicate()]
            key = (parameter.device_mesh, *sharded)
        groups.setdefault(key, []).append(norm)
    total = torch.zeros((), dtype=torch.float32, device="cpu")
    for key, norms in groups.items():
        powers = torch.stack([_power(norm, norm_type).float() for norm in norms])
        joined = powers.max() if norm_type == torch.inf else powers.sum()
        if key:
            joined = _over_mesh(joined, key[0], key[1:], largest=norm_type == torch.inf)
        joined = joined.to("cpu")
        total = torch.maximum(total, joined) if norm_type == torch.inf else total + joined
    return total if norm_type == torch.inf else total ** (1 / norm_type)


def _power(norm: Tensor, norm_type: float) -> Tensor:
    return norm if norm_type == torch.inf else norm**norm_type


def _over_mesh(x: Tensor, mesh: Any, dims: tuple[int, ...], *, largest: bool) -> Tensor:
    import torch.distributed as dist

    x = x.to(mesh.device_type)
    for dim in dims:
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        dist.all_reduce(x, op=op, group=mesh.get_group(dim))
    return x
