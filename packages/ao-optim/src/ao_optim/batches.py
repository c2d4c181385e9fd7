"""Which parameters step, in batches that one call of an op takes, and how that is remembered.

Finding it out takes 10 us a parameter, which is longer than the device works on a small one. So the
plan of a step stays, and the next one compares what could have changed since: groups and their
options, records, and dtypes, devices and layouts of parameters and gradients. That takes 1 us. What
the records hold is read anew in every step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, starmap
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ao_core.moments import StateBits
from ao_kernels.ops.moments import counted

from .record import Layout, Record, layout_for, mismatch, new_record
from .sharding import first_index, is_sharded, local_part, local_part_as

__all__ = ["Batch", "Kind", "Planner", "Step", "Work"]

# Options of a group that decide what its records are and which calls its parameters share.
SHAPING = ("state_bits", "block_size", "amsgrad", "maximize", "bf16_stochastic_round")


class Kind(NamedTuple):
    """What the parameters of a batch have in common."""

    device: torch.device
    dtype: torch.dtype
    grad_dtype: torch.dtype
    bits: StateBits
    block_size: int
    amsgrad: bool
    maximize: bool
    stochastic: bool
    in_a_row: bool  # else a part's elements, which random bits count, are not in a row in the whole


@dataclass
class Batch:
    """Parameters of one kind, in the order of their groups."""

    kind: Kind
    where: list[int] = field(default_factory=list)  # among those that step
    places: list[int] = field(default_factory=list)  # among all parameters of the optimizer
    parameters: list[Tensor] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # of their first elements in the whole

    @cached_property
    def runs(self) -> list[tuple[dict[str, Any], int, int]]:
        """Each group with the first of its parameters here, and the one behind the last."""
        starts = [i for i, g in enumerate(self.groups) if i == 0 or g is not self.groups[i - 1]]
        return [
            (self.groups[first], first, last)
            for first, last in pairwise((*starts, len(self.groups)))
        ]


class Step(NamedTuple):
    """One parameter in a step: this rank's parts of it and of its gradient, and its state."""

    place: int
    parameter: Tensor
    p: Tensor
    g: Tensor
    group: dict[str, Any]
    layout: Layout
    record: Record
    number: int  # of the step, from 1


class Work(NamedTuple):
    """A batch in one step: this rank's parts, and which step it is for each parameter, from 1."""

    batch: Batch
    p: list[Tensor]
    g: list[Tensor]
    counts: list[float]

    def each(self) -> Iterator[Step]:
        b, numbers = self.batch, map(int, self.counts)
        lists = (b.places, b.parameters, self.p, self.g, b.groups, b.layouts, b.records, numbers)
        rows = zip(*lists, strict=True)
        return starmap(Step, rows)


class Known(NamedTuple):
    """A record that was found to fit the options of its group, and these."""

    parameter: Tensor
    record: Record
    options: tuple[Any, ...]
    layout: Layout


@dataclass
class Plan:
    """What a step found, for the next one to compare."""

    groups: list[tuple[dict[str, Any], list[Tensor], tuple[Any, ...]]]
    stepping: list[Tensor]
    idle: list[Tensor]  # without gradients
    state: list[Any]  # the values of the optimizer's state
    records: list[Record]  # of `stepping`
    look: tuple[list[Any], ...]
    plain: bool  # no parameter and no gradient is a DTensor
    batches: list[Batch] = field(default_factory=list)

    def gradients(self, optimizer: Optimizer) -> list[Tensor] | None:
        """Those of a step like the last one; None if something has changed."""
        if len(self.groups) != len(optimizer.param_groups):
            return None
        for group, (then, params, options) in zip(optimizer.param_groups, self.groups, strict=True):
            if group is not then or _options(group) != options:
                return None
            if not _same(group["params"], params):
                return None
        if not _same(optimizer.state.values(), self.state):
            return None
        if any(p.grad is not None for p in self.idle):
            return None
        grads = [p.grad for p in self.stepping]
        if type(None) in map(type, grads) or _look(self.stepping, grads) != self.look:
            return None
        return grads  # type: ignore[return-value]


class Planner:
    """The steps of one optimizer."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._known: dict[int, Known] = {}

    def works(self, optimizer: Optimizer) -> list[Work]:
        """What a step is about: the parameters that have gradients. Their steps are counted.

        Raises NotImplementedError for sparse gradients and ValueError for state that does not fit,
        before anything changes; RuntimeError while a CUDA graph is captured.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() cannot be captured in a CUDA graph: it counts "
                "steps on the host. Capture forward and backward, and call step() behind the replay"
            )
        plan, grads = self._plan, None
        if plan is not None:
            grads = plan.gradients(optimizer)
        if plan is None or grads is None:
            self._plan = None
            plan = self._plan = self._planned(optimizer)
            grads = [p.grad for p in plan.stepping]  # type: ignore[misc]
        counts = counted([record["step"] for record in plan.records])
        found = []
        for batch in plan.batches:
            g = [grads[i] for i in batch.where]
            if plan.plain:
                p = batch.parameters
            else:
                p = [local_part(x) for x in batch.parameters]
                g = [local_part_as(y, x) for y, x in zip(g, batch.parameters, strict=True)]
            found.append(Work(batch, p, g, [counts[i] for i in batch.where]))
        return found

    def _planned(self, optimizer: Optimizer) -> Plan:
        found, idle, place = [], [], -1
        for group in optimizer.param_groups:
            options = _options(group)
            for parameter in group["params"]:
                place += 1
                if parameter.grad is None:
                    idle.append(parameter)
                else:
                    known = self._checked(optimizer, parameter, group, options, place)
                    found.append((place, parameter, group, known))
        records = []
        for _, parameter, _, known in found:
            record = known.record
            if not record:
                record = optimizer.state[parameter]
                record.update(new_record(known.layout, local_part(parameter).device))
                known = known._replace(record=record)
            self._known[id(parameter)] = known
            records.append(record)
        stepping = [parameter for _, parameter, _, _ in found]
        grads = [parameter.grad for parameter in stepping]
        plan = Plan(
            [(g, list(g["params"]), _options(g)) for g in optimizer.param_groups],
            stepping,
            idle,
            list(optimizer.state.values()),
            records,
            _look(stepping, grads),
            plain="torch.distributed.tensor" not in sys.modules
            or not any(is_sharded(x) for x in (*stepping, *grads)),
        )
        batches: dict[Kind, Batch] = {}
        for i, (place, parameter, group, known) in enumerate(found):
            kind, offset = _kind(parameter, grads[i], group, known.layout)
            batch = batches.setdefault(kind, Batch(kind))
            batch.where.append(i)
            batch.places.append(place)
            batch.parameters.append(parameter)
            batch.groups.append(group)
            batch.layouts.append(known.layout)
            batch.records.append(records[i])
            batch.offsets.append(offset)
        plan.batches = list(batches.values())
        return plan

    def _checked(
        self,
        optimizer: Optimizer,
        parameter: Tensor,
        group: dict[str, Any],
        options: tuple[Any, ...],
        place: int,
    ) -> Known:
        grad = parameter.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise NotImplementedError(
                f"{type(optimizer).__name__} takes dense gradients, got {grad.layout}; "
                "build the embedding with sparse=False, or use torch.optim.SparseAdam for it"
            )
        record, last = optimizer.state.get(parameter), self._known.get(id(parameter))
        if (
            last is not None
            and last.record is record
            and last.parameter is parameter
            and last.options == options[:3]
        ):
            return last
        layout = layout_for(optimizer, parameter, group)
        if record and (problem := mismatch(record, layout)):
            raise ValueError(
                f"the state of parameter {place} {problem}. state_bits, block_size and "
                "amsgrad cannot change after the first step: build a new optimizer and "
                "give it full_state_dict() of this one, by load_full_state_dict()"
            )
        return Known(parameter, record or {}, options[:3], layout)


def _options(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple([group.get(name) for name in SHAPING])


def _same(now: Any, then: list[Any]) -> bool:
    """Whether these are the same objects."""
    return len(now) == len(then) and all(map(is_, now, then))


def _look(params: list[Tensor], grads: list[Any]) -> tuple[list[Any], ...]:
    """What tells whether parameters and gradients go into the same calls."""
    return (
        [p.dtype for p in params],
        [p.device for p in params],
        [g.dtype for g in grads],
        [g.layout for g in grads],
        [type(g) for g in grads],
    )


def _kind(parameter: Tensor, grad: Any, group: dict[str, Any], layout: Layout) -> tuple[Kind, int]:
    """The kind of a parameter, and the offset of its part if that is in a row."""
    stochastic = group["bf16_stochastic_round"] and parameter.dtype == torch.bfloat16
    first = first_index(parameter) if stochastic or layout.bits == 4 else 0
    kind = Kind(
        local_part(parameter).device,
        parameter.dtype,
        grad.dtype,
        layout.bits,
        layout.block_size,
        bool(group.get("amsgrad")),
        bool(group.get("maximize")),
        stochastic,
        first is not None,
    )
    return kind, first or 0
