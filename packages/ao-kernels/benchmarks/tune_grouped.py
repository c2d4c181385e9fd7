"""Kernels of the grouped linears on a GPU, and their tiles: times each of them, checks its result,
and prints the fastest beside torch._grouped_mm in bfloat16.

python benchmarks/tune_grouped.py --models qwen3 --formats int4 --tokens 1,16 --seconds 30

"triton" and "cuda" take the tiles that they choose, "cuda:N" tiles of N tokens, "library" is
torch._scaled_grouped_mm. With --sweep Triton's tiles are timed instead: block_m,block_n,block_k,
warps,stages,programs.

Kernels are compiled first, by several processes, into Triton's cache. What does not fit into
``--seconds`` is left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from bench_grouped_linear import FORMATS, MODELS, bytes_read, made, routed
from measure_cuda import SPREAD_BYTES
from report import check_close
from torch import Tensor

from ao_kernels import cuda, force
from ao_kernels.triton import experts, grouped_product, launch
from ao_kernels.triton.tiles import Tile

_LEAST_MS = 6.0  # of replays that are timed
# By rows of an expert; the last ones are for any number. block_m, block_n, block_k, warps, stages,
# programs of a multiprocessor below which K is split.
CODES_4 = {
    16: [
        (16, 128, 128, 4, 3, 4),
        (16, 64, 128, 4, 4, 4),
        (16, 64, 256, 4, 3, 4),
        (16, 128, 256, 8, 3, 2),
        (16, 64, 128, 4, 6, 4),
        (16, 128, 128, 4, 4, 2),
        (16, 128, 64, 4, 6, 4),
        (16, 64, 256, 4, 4, 2),
    ],
    128: [
        (64, 128, 128, 8, 3, 1),
        (64, 64, 128, 4, 3, 2),
        (64, 128, 64, 4, 4, 2),
        (64, 128, 128, 4, 3, 2),
        (128, 64, 128, 4, 3, 2),
        (128, 128, 128, 8, 3, 1),
        (128, 128, 64, 8, 4, 1),
        (64, 128, 128, 8, 4, 1),
        (128, 128, 128, 4, 3, 1),
    ],
    0: [
        (64, 128, 128, 8, 3, 1),
        (128, 128, 64, 8, 4, 1),
        (128, 128, 128, 8, 3, 1),
        (256, 128, 64, 8, 3, 1),
        (128, 64, 128, 4, 3, 2),
        (128, 64, 64, 4, 4, 2),
    ],
}
CODES_8 = {
    16: [
        (16, 64, 128, 4, 3, 4),
        (16, 64, 256, 4, 3, 4),
        (16, 64, 128, 4, 6, 4),
        (16, 128, 128, 4, 4, 2),
        (16, 128, 128, 8, 4, 2),
        (16, 64, 256, 4, 4, 2),
        (16, 128, 256, 8, 3, 2),
        (16, 128, 64, 4, 6, 4),
    ],
    128: [
        (128, 128, 64, 8, 3, 1),
        (64, 64, 128, 4, 3, 2),
        (64, 128, 64, 4, 4, 2),
        (64, 128, 128, 4, 3, 2),
        (128, 64, 64, 4, 4, 2),
        (128, 128, 128, 8, 3, 1),
        (64, 128, 64, 8, 4, 1),
        (64, 128, 128, 8, 4, 1),
    ],
    0: [
        (128, 128, 64, 8, 3, 1),
        (128, 128, 64, 8, 4, 1),
        (256, 128, 64, 8, 3, 1),
        (128, 128, 128, 8, 3, 1),
        (128, 64, 64, 4, 4, 2),
    ],
}
CODES_OF_BOTH = {
    16: [*CODES_8[16], (16, 128, 128, 4, 6, 2)],
    128: [
        (64, 128, 128, 4, 4, 2),
        (128, 128, 128, 8, 4, 1),
        (64, 128, 128, 8, 4, 1),
        (64, 64, 128, 4, 5, 2),
        (128, 64, 128, 4, 4, 2),
        (128, 128, 64, 8, 5, 1),
    ],
    0: [
        (64, 128, 128, 4, 4, 2),
        (128, 128, 128, 8, 4, 1),
        (256, 128, 128, 8, 3, 1),
        (128, 256, 128, 8, 3, 1),
        (128, 128, 64, 8, 5, 1),
        (128, 128, 128, 4, 4, 1),
    ],
}
TILES = {
    "int4": CODES_4,
    "int8": CODES_8,
    "float8": CODES_8,
    "int8_dynamic": CODES_OF_BOTH,
    "float8_dynamic": CODES_OF_BOTH,
    "float8_int4": CODES_4,
}


CUDA_TOKENS = {
    **dict.fromkeys(("int4", "int8", "float8"), (8, 16, 32, 64, 128, 256)),
    "int8_dynamic": (16, 32, 64, 128, 256),
    "float8_dynamic": (16, 32, 64, 128),
}


class Case(NamedTuple):
    """T tokens of a model, and the projection N x K of its experts."""

    model: str
    N: int
    K: int
    T: int

    @property
    def experts(self) -> int:
        return MODELS[self.model][0]

    @property
    def rows(self) -> int:
        """Of an expert, on average."""
        tokens = self.T * MODELS[self.model][1]
        return grouped_product.rows_of(tokens, self.experts)

    def __str__(self) -> str:
        return f"{self.model} {self.N}x{self.K} T={self.T} ({self.rows} rows)"


def main() -> None:
    begin = time.perf_counter()
    options = _options()
    cases = [
        Case(model, N, K, T)
        for model in options.models.split(",")
        for N, K in MODELS[model][2]
        for T in map(int, options.tokens.split(","))
    ]
    formats = options.formats.split(",")
    _compile(cases, formats, options.processes, sweep=options.sweep)
    print(f"compiled after {time.perf_counter() - begin:.0f} s", flush=True)
    left_out = 0
    for model, N, K in dict.fromkeys((c.model, c.N, c.K) for c in cases):
        bf16: dict[int, float] = {}
        for name in formats:
            with torch.inference_mode():
                layers, dense = made(name, MODELS[model][0], N, K, options.group_size)
                for case in cases:
                    if (case.model, case.N, case.K) != (model, N, K):
                        continue
                    if time.perf_counter() - begin > options.seconds:
                        left_out += 1
                        continue
                    found = _measured(case, name, layers, dense, bf16, options)
                    _report(case, name, found, bf16[case.T], options.out)
            del layers, dense
    print(f"{left_out} cases left out, {time.perf_counter() - begin:.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mixtral,qwen3", help=",".join(MODELS))
    parser.add_argument("--formats", default=",".join(FORMATS), help=",".join(FORMATS))
    parser.add_argument("--tokens", default="1,16,256,4096")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--processes", type=int, default=min(14, os.cpu_count() or 1))
    parser.add_argument("--sweep", action="store_true", help="time Triton's tiles")
    parser.add_argument("--out", help="a JSON lines file to append to")
    return parser.parse_args()


def tiles_of(case: Case, name: str) -> list[Tile]:
    most = next(most for most in TILES[name] if case.rows <= most or most == 0)
    return [Tile(*each) for each in TILES[name][most]]


class _Side(NamedTuple):
    """tile: of Triton's kernel; tokens: of a tile of the CUDA kernels; where not given, theirs."""

    backend: str
    tile: Tile | None = None
    library: bool = False
    tokens: int = 0

    def __str__(self) -> str:
        if self.library:
            return "library"
        if self.tile is not None:
            return ",".join(map(str, self.tile))
        return f"{self.backend}:{self.tokens}" if self.tokens else self.backend

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Every call made meanwhile takes it, or says why not."""
        force(self.backend)  # forgets plans
        with contextlib.ExitStack() as stack:
            rows = 0 if self.library else math.inf
            stack.enter_context(mock.patch.object(experts, "LIBRARY_ROWS", rows))
            if self.tile is not None:
                chosen = mock.patch.object(grouped_product, "tile_of", lambda *_, **__: self.tile)
                stack.enter_context(chosen)
            if self.tokens:
                _force_tokens(self.tokens)
            try:
                yield
            finally:
                force(None)
                if self.tokens:
                    _force_tokens(0)


def _force_tokens(tokens: int) -> None:
    from ao_kernels import _cuda

    _cuda.force_grouped_tile(tokens)


def _sides(case: Case, name: str, *, sweep: bool) -> list[_Side]:
    library = [_Side("triton", library=True)] if name == "float8_dynamic" else []
    if sweep:
        return [_Side("triton", tile=tile) for tile in tiles_of(case, name)] + library
    sides = [_Side("triton"), *library]
    if name in CUDA_TOKENS and not cuda.unavailable:
        near = [t for t in CUDA_TOKENS[name] if t / 8 <= case.rows <= 32 * t]
        sides += [_Side("cuda"), *(_Side("cuda", tokens=t) for t in near)]
    return sides


# --- compilation


def _compile(cases: list[Case], formats: list[str], n_processes: int, *, sweep: bool) -> None:
    if sweep:
        tasks: list[Any] = [(n, t, cases) for n in formats for t in _all_tiles(cases, n)]
    else:
        tasks = [(name, None, [case]) for name in formats for case in cases]
    with multiprocessing.get_context("spawn").Pool(n_processes, _start_worker) as pool:
        pool.starmap(_compile_tile, tasks, chunksize=1)


def _all_tiles(cases: list[Case], name: str) -> list[Tile]:
    return list(dict.fromkeys(tile for case in cases for tile in tiles_of(case, name)))


def _start_worker() -> None:
    def compile_only(self: Any, *tensors: Tensor | None) -> None:
        given = [
            t.view(torch.uint8) if t is not None and t.dtype in launch._FLOAT8 else t
            for t in tensors
        ]
        self._kernel.warmup(
            *given, *self._numbers, grid=self._grid, **self._constants, **self._options
        )

    launch.Launch.__call__ = compile_only  # type: ignore[method-assign]


def _compile_tile(name: str, tile: Tile | None, cases: list[Case]) -> None:
    """Only shapes and dtypes matter. What does not compile is said where it is measured."""
    for case in cases:
        if tile is not None and tile not in tiles_of(case, name):
            continue
        E, rows = case.experts, case.T * MODELS[case.model][1]
        small = FORMATS[name][0](FORMATS[name][1], 1, 16, case.K, 128)
        taking = _Side("triton", tile=tile, library=False).taking()
        with torch.inference_mode(), taking, contextlib.suppress(Exception):
            x = torch.empty(rows, case.K, dtype=torch.bfloat16, device="cuda")
            weight = [
                torch.empty(E, case.N, a.shape[2], dtype=a.dtype, device="cuda")
                if isinstance(a, Tensor)
                else a
                for a in small.weight
            ]
            small.op(x, *weight, torch.zeros(E, dtype=torch.int32, device="cuda"), None)


# --- measurement


def _measured(
    case: Case,
    name: str,
    layers: list[Any],
    dense: list[Tensor],
    bf16: dict[int, float],
    options: argparse.Namespace,
) -> dict[str, float | str]:
    """Microseconds by tile, or why there are none."""
    E, k, _ = MODELS[case.model]
    rows = case.T * k
    x = torch.randn(rows, case.K, device="cuda").bfloat16()
    first = bytes_read(layers[0], routed(case.T, E, k))
    routes = [routed(case.T, E, k) for _ in range(max(2, -(-SPREAD_BYTES // first)))]
    n = len(layers)
    if case.T not in bf16:
        calls = [
            lambda w=dense[i % n], offs=offs: torch._grouped_mm(x, w.mT, offs=offs)
            for i, offs in enumerate(routes)
        ]
        bf16[case.T] = _time(calls)
    expected = torch._grouped_mm(x, dense[0].mT, offs=routes[0])
    found: dict[str, float | str] = {}
    for side in _sides(case, name, sweep=options.sweep):
        calls = [
            lambda a=layers[i % n], offs=offs: a.op(x, *a.weight, offs, None)
            for i, offs in enumerate(routes)
        ]
        with side.taking():
            try:
                check_close(str(side), calls[0](), expected, FORMATS[name][2])
                found[str(side)] = _time(calls)
            except Exception as error:  # too much shared memory, for example: said, and not taken
                found[str(side)] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
    return found


def _time(calls: list[Any]) -> float:
    """Microseconds a call, in a CUDA graph: the faster of two halves of the replays."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    repeats = max(1, min(50, math.ceil(_LEAST_MS / 2 / max(begin.elapsed_time(end), 1e-3))))
    graph.replay()
    begin.record()
    for _ in range(repeats):
        graph.replay()
    middle.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    fastest = min(begin.elapsed_time(middle), middle.elapsed_time(end))
    del results
    return fastest / repeats / len(calls) * 1e3


def _report(
    case: Case, name: str, found: dict[str, float | str], bf16: float, out: str | None
) -> None:
    times = {tile: us for tile, us in found.items() if isinstance(us, float)}
    order = sorted(times, key=times.__getitem__)
    cells = [f"{side} {times[side]:.1f}" for side in order]
    print(f"{case} {name}: bf16 {bf16:.1f} | {' | '.join(cells)}", flush=True)
    for tile, why in found.items():
        if isinstance(why, str):
            print(f"    {tile}: {why}", flush=True)
    if out:
        row = {"case": str(case), "format": name, "bf16": bf16, "us": found}
        with open(out, "a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
