"""Linears of quantized activations on a GPU in one launch and in two: device and host time.

python benchmarks/bench_token_launches.py --shapes 14336x4096,4096x4096,4096x14336 --tokens 1,2,4,8

One launch takes up to 16 tokens. The times in graphs are those of measure_cuda.py; "host" is wall
time a call in eager mode, whose work on the device is shorter. The limit counts weights, tokens
and results.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from float8_sides import BLOCKS, layers
from measure_cuda import Report, alternate, arguments, count_layers, graph_times, shapes
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.ops import float8_dynamic_linear, int8_dynamic_linear

KINDS = ("int8 row", "float8 row", "float8 tensor", "float8 block")
HOST_CALLS, HOST_ROUNDS = 400, 9


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(shapes="14336x4096,4096x4096,4096x14336", tokens="1,2,4,8,16", seconds=0.1)
    options = parser.parse_args()
    report, dtype = Report("token_launches", options.out), getattr(torch, options.dtype)
    table: dict[tuple[str, str], list[str]] = {}
    with torch.inference_mode():
        copy = _copy_gbps()
        for N, K in shapes(options.shapes):
            for kind in KINDS:
                ops = _ops(kind, N, K, dtype)
                for M in map(int, options.tokens.split(",")):
                    x = torch.randn(M, K, device="cuda").to(dtype)
                    sides = {
                        name: [_in_launches(launches, op, x) for op in ops]
                        for name, launches in (("ours", 1), ("two", 2))
                    }
                    for one, two in zip(*sides.values(), strict=True):
                        assert torch.equal(one(), two())
                    times = graph_times(
                        sides, seconds=options.seconds, least_rounds=9, warm_seconds=0.05
                    )
                    limit = (N * K + x.nbytes + M * N * x.itemsize) / copy / 1e3
                    report.line(f"{kind} {N}x{K} M={M}", times, limit, f"copy {copy:.0f} GB/s")
                    cell = f"{times['ours'].median:5.1f} {times['two'].median:5.1f}"
                    table.setdefault((f"{N}x{K}", kind), []).append(cell)
                del ops
        hosts = {kind: _host(kind, dtype) for kind in KINDS}
    print("\nus of one launch and of two, in graphs")
    print(f"{'':26s}" + "".join(f"{'M=' + M:>14s}" for M in options.tokens.split(",")))
    for (shape, kind), cells in table.items():
        print(f"{shape:12s}{kind:14s}" + "".join(f"{cell:>14s}" for cell in cells))
    print("us a call on the host, 1024x1024, M=1, one launch and two")
    for kind, (one, two) in hosts.items():
        print(f"{kind:26s}{one:8.1f} {two:5.1f}")


def _in_launches(launches: int, op: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        _cuda.force_launches(launches)
        try:
            return op(x)
        finally:
            _cuda.force_launches(0)

    return call


def _ops(kind: str, N: int, K: int, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
    """The linear of every layer."""
    codes, scales = kind.split()
    if codes == "int8":
        weights = [
            (
                torch.randint(-127, 128, (N, K), device="cuda").to(torch.int8),
                torch.rand(N, 1, device="cuda") / (64 * K**0.5),
            )
            for _ in range(count_layers(N * K))
        ]
        return [lambda x, w=w: int8_dynamic_linear(x, *w) for w in weights]
    found = [(each.codes, each.scale) for each in layers(N, K, scales, dtype)]
    return [
        lambda x, w=w: float8_dynamic_linear(x, *w, *BLOCKS[scales], scales, None) for w in found
    ]


def _host(kind: str, dtype: torch.dtype) -> tuple[float, float]:
    """Medians, both ways in turn."""
    op, x = _ops(kind, 1024, 1024, dtype)[0], torch.randn(1, 1024, device="cuda").to(dtype)
    samples: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(HOST_ROUNDS):
        for launches, times in samples.items():
            _cuda.force_launches(launches)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(HOST_CALLS):
                op(x)
            times.append((time.perf_counter() - begin) / HOST_CALLS * 1e6)
    _cuda.force_launches(0)
    torch.cuda.synchronize()
    one, two = (sorted(times)[HOST_ROUNDS // 2] for times in samples.values())
    return one, two


def _copy_gbps() -> float:
    nothing = torch.empty(1, device="cuda")
    return alternate({"ours": [nothing.zero_]}, seconds=0.2, least_rounds=9).copy_gbps


if __name__ == "__main__":
    main()
