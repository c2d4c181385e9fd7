"""How the benchmarks of this folder measure CPU kernels.

Both sides run in one process, in random order, each over as many distinct layers as are given,
with the last-level cache emptied before each side, so that weights come from memory. The time of a
side is the median over rounds of the mean over its layers; the spread is the 10th and 90th
percentile. Reading the same bytes, in the same place and with the same threads, is one more side of
the same rounds: it is the limit of weight-bound work.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import report
import torch
from report import Times, arguments, check_close, shapes, summary

from ao_kernels import _C

__all__ = ["Memory", "Report", "alternate", "arguments", "check_close", "read_layers", "shapes"]

FLUSH_BYTES = 96 << 20  # three times the largest last-level cache this was run on


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
    return {name: summary(samples[name]) for name in sides}


class Report(report.Report):
    """The report of CPU kernels."""

    def __init__(self, benchmark: str, out: str | None) -> None:
        machine = f"{_processor()}, {torch.get_num_threads()} threads, {_C.isa()}, "
        super().__init__(benchmark, out, machine + _C.thread_backend())

    def add(self, case: str, times: dict[str, Times], n_bytes: int) -> None:
        """``n_bytes`` is what our side must read; "ours" and "read" must be among ``times``."""
        read = times["read"].median
        gbps = n_bytes / read / 1e3
        self.line(case, times, read, f"{gbps:.1f} GB/s", read_gbps=gbps)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
