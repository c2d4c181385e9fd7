"""A step of an optimizer: everything is checked first, then one call of an op for all parameters
that have the same dtypes, device and format.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ao_core.rounding import random_bits, random_key, round_to_bfloat16
from ao_kernels.ops import adam_step, lion_step
from ao_kernels.ops.adam_step import adam_scalars
from ao_kernels.ops.lion_step import lion_scalars
from ao_kernels.ops.moments import sent

from .record import Layout, Record, layout_for, mismatch, new_record
from .sharding import element_index, first_index, local_part, local_part_as

__all__ = ["Known", "Step", "adam_steps", "gathered", "lion_steps"]


class Step(NamedTuple):
    """One parameter in a step: this rank's parts of it and of its gradient, and its state."""

    place: int
    parameter: Tensor
    p: Tensor
    g: Tensor
    group: dict[str, Any]
    layout: Layout
    record: Record


class Known(NamedTuple):
    """A record that was found to fit the options of its group, and these."""

    parameter: Tensor
    record: Record
    options: tuple[Any, ...]
    layout: Layout


def gathered(optimizer: Optimizer, known: dict[int, Known]) -> list[Step]:
    """What a step is about: the parameters that have gradients. Their steps are counted.

    known: of each parameter, by its id, the last record that was checked. Raises
    NotImplementedError for sparse gradients and ValueError for state that does not fit, before
    anything changes; RuntimeError while a CUDA graph is captured.
    """
    name = type(optimizer).__name__
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{name}.step() cannot be captured in a CUDA graph: it counts steps on the host. "
            "Capture forward and backward, and call step() behind the replay"
        )
    found, place = [], -1
    for group in optimizer.param_groups:
        options = (group["state_bits"], group["block_size"], group.get("amsgrad"))
        for parameter in group["params"]:
            place += 1
            grad = parameter.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise NotImplementedError(
                    f"{name} takes dense gradients, got {grad.layout}; "
                    "build the embedding with sparse=False, or use torch.optim.SparseAdam for it"
                )
            record, last = optimizer.state.get(parameter), known.get(id(parameter))
            if (
                last is None
                or last.record is not record
                or last.parameter is not parameter
                or last.options != options
            ):
                layout = layout_for(optimizer, parameter, group)
                if record and (problem := mismatch(record, layout)):
                    raise ValueError(
                        f"the state of parameter {place} {problem}. state_bits, block_size and "
                        "amsgrad cannot change after the first step: build a new optimizer and "
                        "give it full_state_dict() of this one, by load_full_state_dict()"
                    )
                last = Known(parameter, record or {}, options, layout)
            found.append((place, parameter, grad, group, last))
    steps = []
    distributed = "torch.distributed.tensor" in sys.modules  # else nothing is a DTensor
    for place, parameter, grad, group, last in found:
        record = last.record
        p, g = parameter, grad
        if distributed:
            p, g = local_part(parameter), local_part_as(grad, parameter)
        if not record:
            record = optimizer.state[parameter]
            record.update(new_record(last.layout, p.device))
            last = last._replace(record=record)
        known[id(parameter)] = last
        steps.append(Step(place, parameter, p, g, group, last.layout, record))
    if steps:
        torch._foreach_add_([step.record["step"] for step in steps], 1)
    return steps


def in_buckets(
    steps: list[Step], key_of: Callable[[Step], tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], list[Step]]]:
    """Steps that one call of an op can take, by device, dtypes, format and what ``key_of`` adds.

    Parameters that are to be rounded stochastically, but are cut such that their elements are not
    in a row in the whole, go one by one through a float32 copy.
    """
    buckets: dict[tuple[Any, ...], list[Step]] = {}
    for step in steps:
        stochastic = step.group["bf16_stochastic_round"] and step.p.dtype == torch.bfloat16
        key = (
            step.p.device,
            step.p.dtype,
            step.g.dtype,
            step.layout.bits,
            step.layout.block_size,
            stochastic,
            *key_of(step),
        )
        buckets.setdefault(key, []).append(step)
    for key, bucket in buckets.items():
        if not key[5]:
            yield key, bucket
            continue
        rows = [step for step in bucket if first_index(step.parameter) is not None]
        if rows:
            yield key, rows
        for step in bucket:
            if first_index(step.parameter) is None:
                wide = step._replace(p=step.p.float())
                yield (key[0], torch.float32, *key[2:5], False, *key[6:]), [wide]
                step.p.copy_(round_to_bfloat16(wide.p, _bits(step)))


def randomness(steps: list[Step]) -> tuple[list[int], list[int]]:
    """The keys and offsets of ops for parameters that are to be rounded stochastically."""
    keys, offsets = [], []
    for step in steps:
        seed, count = step.group["seed"], int(step.record["step"])
        keys.append(random_key(seed=seed, stream=step.place, step=count))
        offset = first_index(step.parameter)
        assert offset is not None
        offsets.append(offset)
    return keys, offsets


def _bits(step: Step) -> Tensor:
    seed, count = step.group["seed"], int(step.record["step"])
    index = element_index(step.parameter)
    return random_bits(index, seed=seed, stream=step.place, step=count)


def adam_steps(steps: list[Step], *, decoupled: bool) -> None:
    """A step of Adam, or AdamW if ``decoupled``."""

    def scalars(group: dict[str, Any], part: list[Step]) -> Tensor:
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        counts = [float(step.record["step"]) for step in part]
        return adam_scalars(counts, decoupled=decoupled, **options)

    buckets = in_buckets(steps, lambda s: (s.group["amsgrad"], s.group["maximize"]))
    for (_, _, _, bits, block_size, stochastic, amsgrad, maximize), bucket in buckets:
        state = [
            [step.record[key] for step in bucket] if key else [] for key in _keys(bits, amsgrad)
        ]
        keys, offsets = randomness(bucket) if stochastic else ([], [])
        adam_step(
            [step.p for step in bucket],
            [step.g for step in bucket],
            *state,
            _by_group(bucket, scalars),
            str(bits),
            block_size,
            decoupled,
            maximize,
            keys,
            offsets,
        )


def _keys(bits: int | str, amsgrad: bool) -> list[str]:
    """The entries of a record that the op takes, in its order; empty for those that are not."""
    names = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq" if amsgrad else ""]
    if bits == 32:
        return [*names, "", "", ""]
    return [name and name + end for end in ("_codes", "_scale") for name in names]


def lion_steps(steps: list[Step]) -> None:
    """A step of Lion."""
    buckets = in_buckets(steps, lambda s: (s.group["maximize"],))
    for (_, _, _, bits, block_size, stochastic, maximize), bucket in buckets:
        values, scales = ("exp_avg", "") if bits == 32 else ("exp_avg_codes", "exp_avg_scale")
        keys, offsets = randomness(bucket) if stochastic else ([], [])
        lion_step(
            [step.p for step in bucket],
            [step.g for step in bucket],
            [step.record[values] for step in bucket],
            [step.record[scales] for step in bucket] if scales else [],
            _by_group(bucket, _lion_scalars),
            str(bits),
            block_size,
            maximize,
            keys,
            offsets,
        )


def _lion_scalars(group: dict[str, Any], steps: list[Step]) -> Tensor:
    options = {name: group[name] for name in ("lr", "betas", "weight_decay")}
    return lion_scalars(len(steps), **options)


def _by_group(
    steps: list[Step], scalars_of: Callable[[dict[str, Any], list[Step]], Tensor]
) -> Tensor:
    """The scalars of steps, which stand in the order of their groups."""
    parts, first = [], 0
    while first < len(steps):
        group, last = steps[first].group, first
        while last < len(steps) and steps[last].group is group:
            last += 1
        parts.append(scalars_of(group, steps[first:last]))
        first = last
    if len(parts) == 1:
        return parts[0]
    device = next((part.device for part in parts if part.device.type != "cpu"), None)
    return torch.cat([part if device is None else sent(part, device) for part in parts])
