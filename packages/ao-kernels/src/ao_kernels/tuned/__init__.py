"""Measured times of kernels on GPUs: which kernel is the fastest for a call, and against bfloat16.

A table is ``tuned/<name of the GPU>.json``, written by ``nox -s tune``; a GPU without one has no
answers here. M tokens, N output features, K input features. A row of a table holds the times of one
op at one N x K and one kind of scales, for several M, of each kernel and of ``F.linear`` with a
bfloat16 weight ("bf16"); null where a kernel did not take the call.

A call looks at the row of its op whose N, K and group size are the nearest: the smallest sum of
|log(asked / measured)|, each of them within a factor of 4, and other kinds of scales equal. In
between two measured M, log(time) is linear in log(M); below the first M of a kernel its time is the
one there, above the last it grows as M does. bfloat16 was measured; float16 is taken to be alike.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "AND",
    "BF16",
    "Call",
    "Comparison",
    "Row",
    "Table",
    "call_of",
    "path_of",
    "read",
    "table_of",
]

BF16 = "bf16"
AND = " + "  # between the runs that a row is from
FORMAT = 1
_FARTHEST = math.log(4)
_NOISE = 1.03  # times closer than this are taken to be equal
_MOST_ANSWERS = 4096
_FOLDER = Path(__file__).parent


class Call(NamedTuple):
    """What decides about the time of a call. kind: "row", "group 128", "tensor", "block 128x128",
    after "4 bits, " where an op has several numbers of bits."""

    kind: str
    M: int
    N: int
    K: int


class Comparison(NamedTuple):
    """Microseconds of a kernel and of another one, or of bfloat16. exact: M is one of the measured;
    N, K: those measured."""

    us: float
    other_us: float
    exact: bool
    M: int
    N: int
    K: int
    device: str

    def __str__(self) -> str:
        how = "measured" if self.exact else "interpolated"
        tokens = "token" if self.M == 1 else "tokens"
        return (
            f"{how} {self.us:.1f} us against {self.other_us:.1f} us at {self.M} {tokens} of "
            f"{self.N} x {self.K} on {self.device}"
        )


@dataclass(frozen=True)
class Row:
    """Times of an op at N x K: microseconds a call by kernel, one for each of ``tokens``."""

    op: str
    kind: str
    N: int
    K: int
    tokens: tuple[int, ...]
    us: dict[str, tuple[float | None, ...]]
    run: str = ""  # the entries of ``runs`` that say how it was measured
    failed: dict[str, str] = field(default_factory=dict)  # what could not be measured, and why

    def measured(self, kernel: str, M: int) -> bool:
        return M in self.tokens and self.us[kernel][self.tokens.index(M)] is not None

    def time(self, kernel: str, M: int) -> float | None:
        """Microseconds of ``kernel`` with M tokens; None where it was not measured."""
        known = [
            (tokens, us)
            for tokens, us in zip(self.tokens, self.us.get(kernel, ()), strict=False)
            if us is not None
        ]
        if not known:
            return None
        at = bisect.bisect_left(known, (M, 0.0))
        if at == len(known):
            last, us = known[-1]
            return us * M / last
        after, us_after = known[at]
        if at == 0 or after == M:
            return us_after
        before, us_before = known[at - 1]
        share = math.log(M / before) / math.log(after / before)
        return us_before * (us_after / us_before) ** share

    def fastest(self, kernels: Sequence[str], M: int) -> str | None:
        times = {name: us for name in kernels if (us := self.time(name, M)) is not None}
        return min(times, key=times.__getitem__, default=None)

    def most_tokens(self, kernel: str, kernels: Sequence[str], few: int) -> float:
        """The largest measured M, at least ``few``, up to which none of ``kernels`` is faster than
        ``kernel`` wherever that was measured; inf where none ever is."""
        most: float = few
        for M, us in zip(self.tokens, self.us.get(kernel, ()), strict=False):
            if us is None or few >= M:
                continue
            at = self.tokens.index(M)
            others = [times[at] for name, times in self.us.items() if name in kernels]
            if us > _NOISE * min(other for other in others if other is not None):
                return most
            most = M
        return math.inf


class Table:
    """The rows of one GPU, and how they were measured."""

    def __init__(self, device: str, rows: Iterable[Row], runs: dict[str, dict[str, Any]]) -> None:
        self.device, self.rows, self.runs = device, list(rows), runs
        self._nearest: dict[tuple[str, str, int, int], Row | None] = {}
        self._fastest: dict[tuple[str, Call, tuple[str, ...]], str | None] = {}

    def nearest(self, op: str, call: Call) -> Row | None:
        """The row that stands for a call, or None where none is near."""
        key = (op, call.kind, call.N, call.K)
        if key not in self._nearest:
            if len(self._nearest) >= _MOST_ANSWERS:
                self._nearest.clear()
            near = [
                (sum(apart), index)
                for index, row in enumerate(self.rows)
                if row.op == op and max(apart := _apart(row, call)) <= _FARTHEST
            ]
            self._nearest[key] = self.rows[min(near)[1]] if near else None
        return self._nearest[key]

    def fastest(self, op: str, call: Call, kernels: tuple[str, ...]) -> str | None:
        """The fastest of ``kernels``; None where none of them was measured near this call."""
        key = (op, call, kernels)
        if key not in self._fastest:
            if len(self._fastest) >= _MOST_ANSWERS:  # of many lengths of prompts, for example
                self._fastest.clear()
            row = self.nearest(op, call)
            self._fastest[key] = None if row is None else row.fastest(kernels, call.M)
        return self._fastest[key]

    def most_tokens(self, op: str, kernel: str, kernels: Sequence[str], few: int) -> float:
        """The number of tokens, at least ``few``, up to which ``kernel`` is as fast as any of
        ``kernels`` in every row of the op that has it; inf for any number."""
        rows = [row for row in self.rows if row.op == op]
        measured = [row.most_tokens(kernel, kernels, few) for row in rows if kernel in row.us]
        return min(measured, default=few if rows else math.inf)

    def compare(
        self, op: str, call: Call, kernel: str, *, against: str = BF16
    ) -> Comparison | None:
        """Times of two kernels; None where either was not measured near this call."""
        row = self.nearest(op, call)
        if row is None:
            return None
        us, other_us = row.time(kernel, call.M), row.time(against, call.M)
        if us is None or other_us is None:
            return None
        exact = row.measured(kernel, call.M) and row.measured(against, call.M)
        return Comparison(us, other_us, exact, call.M, row.N, row.K, self.device)

    def to_json(self) -> str:
        """The file: one line a kernel and row."""
        runs = [f"    {json.dumps(n)}: {json.dumps(self.runs[n])}" for n in sorted(self.runs)]
        rows = []
        for row in sorted(self.rows, key=lambda r: (r.op, r.kind, r.N, r.K)):
            facts = {"op": row.op, "kind": row.kind, "N": row.N, "K": row.K, "run": row.run}
            lines = [json.dumps(facts)[:-1] + ","]
            lines.append(f'  "tokens": {json.dumps(row.tokens)},')
            if row.failed:
                lines.append(f'  "failed": {json.dumps(row.failed)},')
            lines.append('  "us": {')
            times = [f"    {json.dumps(n)}: {json.dumps(us)}" for n, us in row.us.items()]
            rows.append("\n    ".join([*lines, ",\n    ".join(times), "  }}"]))
        return (
            f'{{\n  "format": {FORMAT},\n  "device": {json.dumps(self.device)},\n'
            '  "runs": {\n' + ",\n".join(runs) + "\n  },\n"
            '  "rows": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"
        )


def _apart(row: Row, call: Call) -> tuple[float, ...]:
    """|log(asked / measured)| of N, K and the group size; inf for another kind of scales."""
    (words, group), (row_words, row_group) = _split(call.kind), _split(row.kind)
    if words != row_words or not call.N or not call.K:
        return (math.inf,)
    pairs = ((call.N, row.N), (call.K, row.K), (group, row_group))
    return tuple(abs(math.log(asked / measured)) for asked, measured in pairs)


@functools.cache
def _split(kind: str) -> tuple[str, int]:
    """ "4 bits, group 128" -> ("4 bits, group", 128); 1 for kinds without a group size."""
    found = re.fullmatch(r"(.*group) (\d+)", kind)
    return (found[1], int(found[2])) if found else (kind, 1)


# --- calls


def call_of(parameters: Sequence[str], args: Sequence[Any]) -> Call | None:
    """What a table knows the call of a linear by; None for other ops, experts, no tokens and dtypes
    that nothing was measured for."""
    given = dict(zip(parameters, args, strict=True))
    x, codes, scale = given.get("x"), given.get("codes"), given.get("scale")
    if x is None or codes is None or scale is None or codes.dim() != 2:
        return None
    if x.dtype not in (torch.bfloat16, torch.float16) or not x.numel() or not codes.shape[0]:
        return None
    K, kind = x.shape[-1], _kind(given, scale, codes.shape[0])
    return Call(kind, x.numel() // K, codes.shape[0], K)


def _kind(given: dict[str, Any], scale: Tensor, N: int) -> str:
    rows, blocks = scale.shape
    if "block_n" in given:
        if scale.numel() == 1 < N:
            kind = "tensor"
        elif rows == N:
            kind = "row" if blocks == 1 else f"group {given['block_k']}"
        else:
            kind = f"block {given['block_n']}x{given['block_k']}"
        activation = given.get("activation", kind)
        return kind if kind.startswith(activation) else f"{kind}, {activation} activations"
    kind = "row" if blocks == 1 else f"group {given['group_size']}"
    return f"{given['bits']} bits, {kind}" if "bits" in given else kind


# --- files


def path_of(device: str) -> Path:
    """The table of a GPU of this name."""
    return _FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


def table_of(device: torch.device) -> Table | None:
    """The table of a device, or None."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return None
    return _table(torch.cuda.get_device_name(device))


def visible_tables() -> Iterator[Table]:
    """The tables of all GPUs of this process."""
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    found = (table_of(torch.device("cuda", index)) for index in range(count))
    return (table for table in found if table is not None)


@functools.cache
def _table(device: str) -> Table | None:
    path = path_of(device)
    return read(path) if path.is_file() else None


def read(path: Path) -> Table:
    """ValueError that says what is wrong, if anything is."""
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r} is not {FORMAT}")
        rows = [_row(each) for each in data["rows"]]
        return Table(str(data["device"]), rows, dict(data["runs"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is not a table of measured kernels: {what}. `nox -s tune` writes such tables; "
            "without the file, kernels are chosen by fixed rules"
        ) from error


def _row(data: dict[str, Any]) -> Row:
    row = Row(
        op=str(data["op"]),
        kind=str(data["kind"]),
        N=int(data["N"]),
        K=int(data["K"]),
        tokens=tuple(map(int, data["tokens"])),
        us={
            str(name): tuple(None if t is None else float(t) for t in times)
            for name, times in data["us"].items()
        },
        run=str(data["run"]),
        failed=dict(data.get("failed", {})),
    )
    where = f"{row.op} {row.kind} {row.N} x {row.K}"
    if row.N < 1 or row.K < 1 or list(row.tokens) != sorted({max(M, 1) for M in row.tokens}):
        raise ValueError(f"{where}: sizes are positive and tokens ascend, got {row.tokens}")
    for name, times in row.us.items():
        if len(times) != len(row.tokens):
            raise ValueError(f"{where}: {name} has {len(times)} times, not {len(row.tokens)}")
        if not all(t is None or (t > 0 and math.isfinite(t)) for t in times):
            raise ValueError(f"{where}: {name} has times that are not positive: {times}")
    return row
