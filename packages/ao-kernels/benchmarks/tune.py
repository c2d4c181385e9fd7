"""Measures the kernels of the linears on this GPU and writes the table that calls are dispatched by
(ao_kernels.tuned), to where it is read from. `nox -s tune` runs it.

Every kernel that takes a call, and F.linear with a bfloat16 weight, in rounds of CUDA graphs over
layers that the L2 cache does not hold; medians. A part that is measured again replaces that part of
the table, the rest stays.

python benchmarks/tune.py --ops int4_linear,int8_linear --tokens 1,64 --shapes 4096x4096
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure_cuda import Sides, count_layers, graph_times
from report import check_close, commit, shapes
from torch import Tensor
from torch.nn.functional import linear
from tuned_formats import FORMATS, Format, Layer

from ao_kernels import OPS, tuned
from ao_kernels.kernel import Kernel

SHAPES = "4096x4096,14336x4096,4096x14336,6144x4096"
TOKENS = "1,2,4,8,16,17,32,64,128,256,512,1024,2048,4096"
DEFAULT_OPS = ",".join(dict.fromkeys(each.op for each in FORMATS if each.default))

Timer = Callable[[Sides], dict[str, float]]
_Key = tuple[str, str, int, int]


def main(
    arguments: Sequence[str] | None = None, timer: Timer | None = None, device: str = "cuda"
) -> int:
    """Exit status: 1 where something could not be measured. ``timer`` gives microseconds a call of
    sides, on tensors of ``device``."""
    options = _options(arguments)
    if os.environ.get("AO_KERNELS"):
        raise SystemExit("AO_KERNELS is set: without it, all kernels can be measured")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device to measure")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    path = Path(options.out) if options.out else tuned.path_of(name)
    table = _existing(name, path, fresh=options.fresh)
    begin, run = time.perf_counter(), _Run(table, options, timer or _graph_timer(options), device)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            run.measure_shape(N, K)
            path.write_text(table.to_json())  # what was measured stays, whatever happens next
    print(f"{path}: {run.n_done} cases in {time.perf_counter() - begin:.0f} s")
    for what, why in run.failures:
        print(f"FAILED {what}: {why}")
    return 1 if run.failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    known = ",".join(dict.fromkeys(each.op for each in FORMATS))
    parser.add_argument("--ops", default=DEFAULT_OPS, help=f"some of {known}, or all")
    parser.add_argument("--kinds", help='kinds of scales, such as "row;block 128x128"; all')
    parser.add_argument("--shapes", default=SHAPES, help="NxK,NxK,...")
    parser.add_argument("--tokens", default=TOKENS, help="M,M,...")
    parser.add_argument("--seconds", type=float, default=0.12, help="time a case, at least")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of a case, at least")
    parser.add_argument("--out", help="the table to write; default: that of the package")
    parser.add_argument("--fresh", action="store_true", help="keep nothing of an older table")
    options = parser.parse_args(arguments)
    options.ops = known.split(",") if options.ops == "all" else options.ops.split(",")
    wrong = [op for op in options.ops if op not in known.split(",")]
    if wrong:
        parser.error(f"unknown ops: {', '.join(wrong)}; known are {known}")
    options.tokens = sorted({int(M) for M in options.tokens.split(",")})
    if options.tokens[0] < 1:
        parser.error("--tokens are positive")
    return options


def _existing(name: str, path: Path, *, fresh: bool) -> tuned.Table:
    """The table to add to: the one to be written, else that of the package."""
    for each in (path, tuned.path_of(name)):
        if each.is_file() and not fresh:
            table = tuned.read(each)
            if table.device != name:
                raise SystemExit(f"{each} is of {table.device}, this is {name}; use another --out")
            return table
    return tuned.Table(name, [], {})


def _graph_timer(options: argparse.Namespace) -> Timer:
    def timer(sides: Sides) -> dict[str, float]:
        times = graph_times(
            sides, seconds=options.seconds, least_rounds=options.rounds, warm_seconds=0.03
        )
        return {name: each.median for name, each in times.items()}

    return timer


class _Run:
    """Measures into a table."""

    def __init__(
        self, table: tuned.Table, options: argparse.Namespace, timer: Timer, device: str
    ) -> None:
        self._table, self._timer, self._device = table, timer, device
        self._tokens: list[int] = options.tokens
        kinds = options.kinds.split(";") if options.kinds else None
        self._formats = [
            each
            for each in FORMATS
            if each.op in options.ops and (kinds is None or each.kind in kinds)
        ]
        if not self._formats:
            raise SystemExit(f"no op of {', '.join(options.ops)} has scales of {options.kinds}")
        n_shapes = len(shapes(options.shapes))
        self._n_cases = n_shapes * len(self._formats) * len(self._tokens)
        self._name, self._facts = _provenance(device)
        self.n_done, self.failures = 0, list[tuple[str, str]]()

    def measure_shape(self, N: int, K: int) -> None:
        weights = [
            torch.randn(N, K, device=self._device, dtype=torch.bfloat16) / K**0.5
            for _ in range(self._count(2 * N * K))
        ]
        for each in self._formats:
            self._measure_format(each, N, K, weights)

    def _measure_format(self, each: Format, N: int, K: int, weights: list[Tensor]) -> None:
        times: dict[int, dict[str, float]] = {}
        failed: dict[str, str] = {}
        try:
            first = each.make(N, K, self._device)
            more = self._count(first.nbytes) - 1
            layers = [first, *(each.make(N, K, self._device) for _ in range(more))]
            dense = first.dense()
        except Exception as error:
            failed["all tokens"] = _words(error)
            self.n_done += len(self._tokens)
        else:
            for M in self._tokens:
                times[M] = self._measure(each, layers, dense, weights, M, failed)
        where = f"{each.op} {each.kind} {N}x{K}"
        self.failures += [(f"{where}, {what}", why) for what, why in failed.items()]
        names = [kernel.name for kernel in OPS[each.op].kernels]
        row = _row((each.op, each.kind, N, K), self._name, times, failed, self._tokens)
        self._table.runs[self._name] = self._facts
        _merge(self._table, row, [tuned.BF16, *names])

    def _measure(
        self,
        each: Format,
        layers: list[Layer],
        dense: Tensor,
        weights: list[Tensor],
        M: int,
        failed: dict[str, str],
    ) -> dict[str, float]:
        """Microseconds by kernel; what fails is told and goes into ``failed``."""
        N, K = dense.shape
        self.n_done += 1
        head = f"[{self.n_done}/{self._n_cases}] {each.op} {each.kind} {N}x{K} M={M}:"
        sides, notes, times = {}, [], {}
        try:
            x = torch.randn(M, K, device=self._device, dtype=torch.bfloat16)
            expected = linear(x, dense)
            bytes_of_call = x.nbytes + expected.nbytes
            for kernel, refused in _kernels(each, layers[0].args(x), self._device):
                if refused:
                    notes.append(f"{kernel.name}: {refused}")
                    continue
                try:
                    y = kernel.run(*layers[0].args(x))
                    check_close(kernel.name, y, expected, each.tolerance)
                except Exception as error:
                    failed[f"{kernel.name}, M={M}"] = _words(error)
                    notes.append(f"{kernel.name} FAILED: {_words(error)}")
                    continue
                count = self._count(layers[0].nbytes + bytes_of_call)
                sides[kernel.name] = [partial(kernel.run, *a.args(x)) for a in layers[:count]]
            count = self._count(weights[0].nbytes + bytes_of_call)
            sides[tuned.BF16] = [partial(linear, x, w) for w in weights[:count]]
            times = self._timer(sides)
        except Exception as error:
            failed[f"all kernels, M={M}"] = _words(error)
            notes.append(f"FAILED: {_words(error)}")
        cells = [f"{name} {us:.1f}" for name, us in times.items()]
        print(head, ", ".join(cells), "us" if cells else "", *(f"| {n}" for n in notes), flush=True)
        return times

    def _count(self, n_bytes: int) -> int:
        """Layers to be used in turn."""
        return count_layers(n_bytes) if self._device == "cuda" else 2


def _kernels(each: Format, args: tuple[Any, ...], device: str) -> list[tuple[Kernel, str | None]]:
    """The kernels of the device, and why they do not take the call, if so."""
    op = OPS[each.op]
    op.why_not(*args)  # loads them
    kernels = [kernel for kernel in op.kernels if device in kernel.devices]
    call = tuned.call_of([a.name for a in op.schema.arguments], args)
    assert call is not None and call.kind == each.kind, f"{each.kind} is looked up as {call}"
    return [(kernel, kernel.supports(*args)) for kernel in kernels]


def _row(
    key: _Key,
    run: str,
    times: dict[int, dict[str, float]],
    failed: dict[str, str],
    tokens: list[int],
) -> tuned.Row:
    names = dict.fromkeys([tuned.BF16, *(name for each in times.values() for name in each)])
    us = {
        name: tuple(
            None if name not in times.get(M, {}) else round(times[M][name], 2) for M in tokens
        )
        for name in names
    }
    return tuned.Row(*key, tuple(tokens), us, run, failed)


def _merge(table: tuned.Table, row: tuned.Row, names: list[str]) -> None:
    """Puts a row into the table; of an older one stay the other numbers of tokens, of kernels that
    there still are."""
    key = (row.op, row.kind, row.N, row.K)
    for index, old in enumerate(table.rows):
        if (old.op, old.kind, old.N, old.K) == key:
            table.rows[index] = _joined(old, row, names)
            break
    else:
        table.rows.append(row)
    used = {name for each in table.rows for name in each.run.split(tuned.AND)}
    for name in table.runs.keys() - used:
        del table.runs[name]


def _joined(old: tuned.Row, new: tuned.Row, names: list[str]) -> tuned.Row:
    if set(old.tokens) <= set(new.tokens):
        return new
    tokens = sorted({*old.tokens, *new.tokens})
    us = {}
    for name in names:
        known: dict[int, float | None] = {}
        for row in (old, new):
            # A kernel without times in the newer row has none at its tokens.
            absent = (None,) * len(row.tokens)
            known.update(zip(row.tokens, row.us.get(name, absent), strict=True))
        if any(time is not None for time in known.values()) or name == tuned.BF16:
            us[name] = tuple(known[M] for M in tokens)
    runs = dict.fromkeys([*old.run.split(tuned.AND), new.run])
    return dataclasses.replace(
        new, tokens=tuple(tokens), us=us, run=tuned.AND.join(runs), failed=new.failed
    )


def _provenance(device: str) -> tuple[str, dict[str, Any]]:
    """A name for this run, and what it was made with."""
    now = datetime.now(timezone.utc).isoformat(timespec="minutes")
    facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }
    if importlib.util.find_spec("triton"):
        facts["triton"] = __import__("triton").__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["multiprocessors"] = properties.multi_processor_count
        facts["driver"] = _driver()
    return f"{now.removesuffix('+00:00')}Z {commit()}", facts


def _driver() -> str:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return found.stdout.partition("\n")[0].strip() or "unknown"


def _words(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:200]


if __name__ == "__main__":
    sys.exit(main())
