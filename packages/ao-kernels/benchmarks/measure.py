"""How the benchmarks of this folder measure and print.

Both sides run in one process, in random order, each over as many distinct layers as are given,
with the last-level cache emptied before each side, so that weights come from memory. The time of a
side is the median over rounds of the mean over its layers; the spread is the 10th and 90th
percentile. Reading the same bytes, in the same place and with the same threads, is one more side of
the same rounds: it is the limit of weight-bound work.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

from ao_kernels import _C

FLUSH_BYTES = 96 << 20  # three times the largest last-level cache this was run on


@dataclass(frozen=True)
class Times:
    """Microseconds a call."""

    median: float
    low: float
    high: float


class Memory:
    """A buffer larger than any cache: read to empty the caches and to measure bandwidth."""

    def __init__(self) -> None:
        self._data = torch.arange(FLUSH_BYTES // 8)

    def flush(self) -> None:
        _C.read_memory(self._data.data_ptr(), self._data.nbytes, torch.get_num_threads())

    def reads(self, n_bytes: int, n_calls: int) -> list[Callable[[], object]]:
        """Calls that read ``n_bytes`` each, one after the other in the buffer, for sides whose own
        bytes lie scattered."""
        at = [
            call * n_bytes % max(64, self._data.nbytes - n_bytes) // 64 * 64
            for call in range(n_calls)
        ]
        return [partial(_read, self._data.view(torch.uint8)[i : i + n_bytes]) for i in at]


def read_layers(layers: Sequence[Sequence[torch.Tensor | None]]) -> list[Callable[[], object]]:
    """Calls that read every byte of a layer's tensors, where they lie: 4 KiB pages of a model cost
    page walks that a buffer read a moment ago does not cost."""
    return [partial(_read, *(t for t in layer if t is not None)) for layer in layers]


def _read(*tensors: torch.Tensor) -> None:
    for t in tensors:
        _C.read_memory(t.data_ptr(), t.nbytes, torch.get_num_threads())


def alternate(
    sides: dict[str, Sequence[Callable[[], object]]], memory: Memory, *, seconds: float = 2.0
) -> dict[str, Times]:
    """Times every side in turn for about ``seconds`` altogether (at least 7 rounds). The order is
    drawn anew each round: a side is up to 10 % slower behind some sides than behind others."""
    names, order = list(sides), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for calls in sides.values():
        for call in calls:
            call()
    start, rounds = time.perf_counter(), 0
    while rounds < 7 or time.perf_counter() - start < seconds:
        order.shuffle(names)
        for name in names:
            memory.flush()
            begin = time.perf_counter()
            for call in sides[name]:
                call()
            samples[name].append((time.perf_counter() - begin) / len(sides[name]) * 1e6)
        rounds += 1
    return {name: _summary(samples[name]) for name in sides}


def _summary(values: list[float]) -> Times:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Times(
        median=ordered[last // 2], low=ordered[round(last * 0.1)], high=ordered[round(last * 0.9)]
    )


def check_close(name: str, y: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raises when a side computes something else than the float32 result: relative error of the
    whole tensor."""
    error = (y.float() - expected.float()).norm() / expected.float().norm()
    if not error < tolerance:
        raise AssertionError(f"{name}: relative error {error:.3g} exceeds {tolerance:.3g}")


class Report:
    """Prints one line a case and appends it to a JSON lines file."""

    def __init__(self, benchmark: str, out: str | None) -> None:
        self._out = Path(out) if out else None
        self._common = {
            "benchmark": benchmark,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": f"{_processor()}, {torch.get_num_threads()} threads, {_C.isa()}, "
            f"{_C.thread_backend()}",
            "torch": torch.__version__,
        }
        print(f"{benchmark}: {self._common['machine']}, torch {torch.__version__}")

    def add(self, case: str, times: dict[str, Times], n_bytes: int) -> None:
        """``n_bytes`` is what our side must read; "ours" and "read" must be among ``times``."""
        ours, read = times["ours"].median, times["read"].median
        cells = [f"{name} {t.median:.0f} [{t.low:.0f}..{t.high:.0f}]" for name, t in times.items()]
        ratios = [
            f"{t.median / ours:.2f}x {name}"
            for name, t in times.items()
            if name not in ("ours", "read")
        ]
        gbps = n_bytes / read / 1e3
        print(
            f"{case:28s} {'  '.join(cells)} us | limit {read:.0f} us ({gbps:.1f} GB/s), "
            f"share {read / ours:.2f} | {', '.join(ratios)}",
            flush=True,
        )
        if self._out:
            row = {
                **self._common,
                "case": case,
                "limit_us": read,
                "read_gbps": gbps,
                "share": read / ours,
                "us": {name: [t.median, t.low, t.high] for name, t in times.items()},
            }
            with self._out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", default="4096x4096,14336x4096", help="NxK,NxK,...")
    parser.add_argument("--tokens", default="1,4,8,16,32,128", help="M,M,...")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--layers", type=int, default=6, help="distinct layers used in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case")
    parser.add_argument("--out", help="JSON lines file to append to")
    return parser


def shapes(text: str) -> list[tuple[int, int]]:
    """ "4096x4096,14336x4096" -> [(4096, 4096), (14336, 4096)]"""
    pairs = [each.split("x") for each in text.split(",")]
    return [(int(n), int(k)) for n, k in pairs]


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
