"""How the benchmarks of this folder measure on an NVIDIA GPU.

A side is a list of calls, each on tensors of its own, together at least ``SPREAD_BYTES``, so that
weights and activations come from memory and not from the L2 cache. All calls of a side are captured
in one CUDA graph; the sides' graphs replay in an order drawn anew each round, with one more graph
among them that copies a buffer: bytes over its bandwidth, or operations over the rate of a large
matrix product of cuBLAS, measured in the same rounds, are the limit. The time of a side is the
median over rounds of the mean over its calls; the spread is the 10th and 90th percentile. What a
call costs without a graph ("eager"), host and device, is measured apart, in such rounds.

Results of captured calls stay alive, so that they, too, lie in memory of their own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import report
import torch
from report import Times, arguments, check_close, shapes, summary

__all__ = [
    "Measured",
    "Report",
    "alternate",
    "arguments",
    "check_close",
    "count_layers",
    "graph_times",
    "shapes",
]

SPREAD_BYTES = 300 << 20  # five times the L2 cache of an H200
_COPY_BYTES = 512 << 20
_PRODUCT = 8192
_WARM_SECONDS = 0.3  # of replays before the first round: clocks rise

Sides = dict[str, Sequence[Callable[[], object]]]


@dataclass(frozen=True)
class Measured:
    """Microseconds a call of every side, in graphs and eager, and what the device reached."""

    graph: dict[str, Times]
    eager: dict[str, Times]
    copy_gbps: float
    tflops: float | None


def count_layers(n_bytes: int, least: int = 2) -> int:
    """Calls of ``n_bytes`` each that pass through the L2 cache several times."""
    return max(least, -(-SPREAD_BYTES // max(n_bytes, 1)))


def alternate(
    sides: Sides,
    *,
    seconds: float = 2.0,
    least_rounds: int = 15,
    product: torch.dtype | None = None,
) -> Measured:
    """Times all sides in turn for about ``seconds``, and at least ``least_rounds`` rounds, each in
    graphs and eager. ``product``: also the rate of a matrix product of that dtype (bfloat16,
    float16, float8_e4m3fn or int8), for work that the matrix units limit."""
    limits: Sides = {"copy": [_copy()]}
    if product is not None:
        limits["product"] = [_product(product)]
    times = graph_times({**sides, **limits}, seconds=seconds, least_rounds=least_rounds)
    eager = _rounds(
        {name: partial(_time_eagerly, calls) for name, calls in sides.items()},
        seconds / 2,
        least_rounds,
    )
    copy_us, product_us = times.pop("copy").median, times.pop("product", None)
    tflops = None if product_us is None else 2 * _PRODUCT**3 / product_us.median / 1e6
    return Measured(times, eager, 2 * _COPY_BYTES / copy_us / 1e3, tflops)


def graph_times(
    sides: Sides, *, seconds: float, least_rounds: int, warm_seconds: float = _WARM_SECONDS
) -> dict[str, Times]:
    """Microseconds a call of every side, in graphs."""
    for calls in sides.values():
        for call in calls:
            call()  # compiles, chooses algorithms
    torch.cuda.synchronize()
    graphs = {name: _Graph(calls) for name, calls in sides.items()}
    replays = {name: graph.time for name, graph in graphs.items()}
    return _rounds(replays, seconds, least_rounds, warm_seconds)


def _rounds(
    sides: dict[str, Callable[[], float]],
    seconds: float,
    least_rounds: int,
    warm_seconds: float = _WARM_SECONDS,
) -> dict[str, Times]:
    """``sides`` give microseconds; the order is drawn anew each round."""
    names, order = list(sides), random.Random(0)
    start = time.perf_counter()
    while time.perf_counter() - start < warm_seconds:
        for name in names:
            sides[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    start, rounds = time.perf_counter(), 0
    while rounds < least_rounds or time.perf_counter() - start < seconds:
        order.shuffle(names)
        for name in names:
            samples[name].append(sides[name]())
        rounds += 1
    return {name: summary(samples[name]) for name in sides}


class _Graph:
    """The calls of a side as one CUDA graph."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._graph, self._n_calls = torch.cuda.CUDAGraph(), len(calls)
        with torch.cuda.graph(self._graph):
            self._results = [call() for call in calls]
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def time(self) -> float:
        """Microseconds a call. A replay before the one that is timed hides the start of the graph
        behind work of the device."""
        self._graph.replay()
        self._begin.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / self._n_calls * 1e3


def _time_eagerly(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds a call, wall time: host and device, whichever takes longer."""
    repeats = -(-200 // len(calls))
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        for call in calls:
            call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / (repeats * len(calls)) * 1e6


def _copy() -> Callable[[], object]:
    # Not copy_: in a graph that is the copy engine's work, which is slower (H200: 2.7 of 4.2 TB/s).
    source = torch.empty(_COPY_BYTES // 4, dtype=torch.int32, device="cuda").random_()
    return partial(torch.neg, source, out=torch.empty_like(source))


def _product(dtype: torch.dtype) -> Callable[[], object]:
    """The product of two square matrices of random data by cuBLAS."""
    shape = (_PRODUCT, _PRODUCT)
    if dtype == torch.int8:
        a, b = (torch.randint(-127, 128, shape, device="cuda").to(dtype) for _ in range(2))
        return lambda: torch._int_mm(a, b.T)
    a, b = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
    if dtype.itemsize > 1:
        return lambda: a @ b.T
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16)


class Report(report.Report):
    """The report of CUDA kernels."""

    def __init__(self, benchmark: str, out: str | None) -> None:
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
        super().__init__(benchmark, out, f"{name}, CUDA {torch.version.cuda}{_triton()}")

    def add(self, case: str, measured: Measured, n_bytes: int, n_operations: int = 0) -> None:
        """``n_bytes`` is what our side ("ours") must read and write, ``n_operations`` what its
        matrix products take, two a multiplication and addition."""
        limit, why = n_bytes / measured.copy_gbps / 1e3, f"copy {measured.copy_gbps:.0f} GB/s"
        if n_operations and measured.tflops:
            product = n_operations / measured.tflops / 1e6
            if product > limit:
                limit, why = product, f"product {measured.tflops:.0f} TFLOP/s"
        self.line(
            case,
            measured.graph,
            limit,
            why,
            copy_gbps=measured.copy_gbps,
            tflops=measured.tflops,
            eager_us={name: [t.median, t.low, t.high] for name, t in measured.eager.items()},
        )
        eager = [f"{name} {t.median:.1f}" for name, t in measured.eager.items()]
        print(f"{'':28s} eager {'  '.join(eager)} us", flush=True)


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return f", triton {triton.__version__}"
