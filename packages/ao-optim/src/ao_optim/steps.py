"""A step of an optimizer: one call of an op for each batch of parameters (`ao_optim.batches`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import dither_starts
from ao_core.rounding import random_bits, random_keys, round_to_bfloat16
from ao_kernels.ops import adam_step, lion_step
from ao_kernels.ops.adam_step import adam_scalars
from ao_kernels.ops.lion_step import lion_scalars
from ao_kernels.ops.moments import sent

from .batches import Work
from .sharding import element_index

__all__ = ["adam_steps", "lion_steps"]


def adam_steps(works: list[Work], *, decoupled: bool, gradient_scale: float) -> None:
    """A step of Adam, or AdamW if ``decoupled``, where gradients may have a scale."""

    def scalars(group: dict[str, Any], counts: list[float]) -> Tensor:
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        return adam_scalars(counts, decoupled=decoupled, gradient_scale=gradient_scale, **options)

    for work in works:
        kind, records = work.batch.kind, work.batch.records
        state = [
            [record[key] for record in records] if key else []
            for key in _keys(kind.bits, kind.amsgrad)
        ]
        # Of parts that are not in a row in the whole, elements are counted in the part: offset 0.
        dithers = dither_starts(work.counts, work.batch.offsets) if kind.bits == 4 else []
        for p, keys, offsets in _targets(work):
            adam_step(
                p,
                work.g,
                *state,
                _by_group(work, scalars),
                str(kind.bits),
                kind.block_size,
                decoupled,
                kind.maximize,
                dithers,
                keys,
                offsets,
            )


def _keys(bits: int | str, amsgrad: bool) -> list[str]:
    """The entries of a record that the op takes, in its order; empty for those that are not."""
    names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq" if amsgrad else ""]
    if bits == 32:
        return [*names, "", "", ""]
    return [name and name + end for end in ("_codes", "_scale") for name in names]


def lion_steps(works: list[Work], *, gradient_scale: float) -> None:
    """A step of Lion."""

    def scalars(group: dict[str, Any], counts: list[float]) -> Tensor:
        options = {name: group[name] for name in ("lr", "betas", "weight_decay")}
        return lion_scalars(len(counts), gradient_scale=gradient_scale, **options)

    for work in works:
        kind, records = work.batch.kind, work.batch.records
        full = kind.bits == 32
        values = "exp_avg" if full else "exp_avg_codes"
        for p, keys, offsets in _targets(work):
            lion_step(
                p,
                work.g,
                [record[values] for record in records],
                [] if full else [record["exp_avg_scale"] for record in records],
                _by_group(work, scalars),
                str(kind.bits),
                kind.block_size,
                kind.maximize,
                keys,
                offsets,
            )


def _targets(work: Work) -> Iterator[tuple[list[Tensor], list[int], list[int]]]:
    """Once: the parameters that an op is to change, and the keys and offsets of random bits.

    Parameters that are to be rounded stochastically, but are cut such that their elements are not
    in a row in the whole, go through float32 copies, which are rounded here.
    """
    batch = work.batch
    if not batch.kind.stochastic:
        yield work.p, [], []
    elif batch.kind.in_a_row:
        keys: list[int] = []
        for group, first, last in batch.runs:
            counts = [int(count) for count in work.counts[first:last]]
            keys += random_keys(seed=group["seed"], streams=batch.places[first:last], steps=counts)
        yield work.p, keys, batch.offsets
    else:
        wide = [p.float() for p in work.p]
        yield wide, [], []
        for step, new in zip(work.each(), wide, strict=True):
            index, seed = element_index(step.parameter), step.group["seed"]
            bits = random_bits(index, seed=seed, stream=step.place, step=step.number)
            step.p.copy_(round_to_bfloat16(new, bits))


def _by_group(work: Work, scalars_of: Callable[[dict[str, Any], list[float]], Tensor]) -> Tensor:
    """The scalars of all parameters, from those of each group's."""
    parts = [scalars_of(group, work.counts[first:last]) for group, first, last in work.batch.runs]
    if len(parts) == 1:
        return parts[0]
    device = next((part.device for part in parts if part.device.type != "cpu"), None)
    return torch.cat([part if device is None else sent(part, device) for part in parts])
