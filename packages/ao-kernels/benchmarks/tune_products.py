"""The products of float8 experts in training, by every kernel and tile there is: checks and times
forward, dgrad and wgrad, beside torch._grouped_mm in bfloat16.

python benchmarks/tune_products.py --seconds 40

"cuda" takes the tile that it chooses, "cuda:256" one of 128 rows of codes by 256 of x. TFLOP/s are
of the product, without casts. "uneven": sizes of experts differ.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from measure_cuda import check_close, graph_times
from torch import Tensor

from ao_kernels import force
from ao_kernels.ops import (
    float8_grouped_matmul,
    float8_grouped_wgrad,
    quantize_grouped_both,
    quantize_rowwise_both,
)

E4M3 = torch.float8_e4m3fn
Call = Callable[[], Tensor]


class Case(NamedTuple):
    """E experts of N x K, M tokens."""

    E: int
    N: int
    K: int
    M: int
    uneven: bool

    def __str__(self) -> str:
        return f"{self.E} x {self.N} x {self.K}, {self.M} tokens{', uneven' * self.uneven}"


CASES = [
    Case(8, 4096, 4096, 8192, False),
    Case(8, 4096, 4096, 8192, True),
    Case(8, 14336, 4096, 8192, False),
    Case(64, 2048, 1024, 16384, True),
    Case(128, 768, 2048, 32768, True),
]
TILES = (128, 256)


def main() -> None:
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="a JSON lines file to append to")
    options = parser.parse_args()
    left = 0
    for case in CASES:
        for product, sides, bf16 in products(case):
            if time.perf_counter() - begin > options.seconds:
                left += 1
                continue
            report(case, product, sides, bf16, options)
    print(f"{left} products left out, {time.perf_counter() - begin:.0f} s", flush=True)


def products(case: Case) -> Iterator[tuple[str, dict[str, Call], Call]]:
    """Name, calls of each side, and of bfloat16."""
    E, N, K, M, uneven = case
    generator = torch.Generator("cuda").manual_seed(0)
    x, dy = (torch.randn(M, n, device="cuda", generator=generator).bfloat16() for n in (K, N))
    w = (torch.randn(E, N, K, device="cuda", generator=generator) / K**0.5).bfloat16()
    offsets = torch.arange(1, E + 1, device="cuda", dtype=torch.int32) * (M // E)
    if uneven:
        chosen = torch.randint(E, (M,), device="cuda", generator=generator)
        offsets = torch.bincount(chosen, minlength=E).cumsum(0).to(torch.int32)
    a, a_scale, at, at_scale, ends = quantize_grouped_both(x, E4M3, offsets)
    g, g_scale, gt, gt_scale, _ = quantize_grouped_both(dy, E4M3, offsets)
    b, b_scale, bt, bt_scale = quantize_rowwise_both(w, E4M3)
    matmul, wgrad = float8_grouped_matmul, float8_grouped_wgrad
    for name, op, args, bf16 in [
        ("forward", matmul, (a, a_scale, b, b_scale, offsets, None, True), (x, w.mT)),
        ("dgrad", matmul, (g, g_scale, bt, bt_scale, offsets, None, False), (dy, w)),
        ("wgrad", wgrad, (gt, gt_scale, at, at_scale, ends, None, False), (dy.T, x)),
    ]:
        sides: dict[str, Call] = {}
        op.choice(*args)  # loads the kernels
        for kernel in op.kernels:
            if kernel.backend != "cuda" and kernel.supports(*args) is None:
                sides[kernel.name] = lambda k=kernel, args=args: k.run(*args)
        sides["cuda"] = lambda op=op, args=args: op(*args)
        for tile in TILES:
            sides[f"cuda:{tile}"] = lambda op=op, args=args, tile=tile: with_tile(tile, op, args)
        yield name, sides, lambda bf16=bf16: torch._grouped_mm(*bf16, offs=offsets)


def with_tile(tile: int, op: Callable[..., Tensor], args: tuple[object, ...]) -> Tensor:
    from ao_kernels import _cuda

    _cuda.force_grouped_tile(tile)
    before = force("cuda")
    try:
        return op(*args)
    finally:
        force(before)
        _cuda.force_grouped_tile(0)


def report(
    case: Case, product: str, sides: dict[str, Call], bf16: Call, options: argparse.Namespace
) -> None:
    expected, good = bf16(), {}
    for name, call in sides.items():
        try:
            check_close(name, call(), expected, 0.08)
            good[name] = [call]
        except Exception as error:  # said, and not timed
            print(f"    {name}: {type(error).__name__}: {error}".splitlines()[0][:150], flush=True)
    del expected
    found = graph_times(
        {**good, "bf16": [bf16]}, seconds=0.3, least_rounds=options.rounds, warm_seconds=0.2
    )
    us = {name: times.median for name, times in found.items()}
    flops = 2 * case.M * case.N * case.K
    cells = [f"{name} {us[name]:.0f}" for name in sorted(us, key=us.__getitem__)]
    print(f"{case} {product}: {' | '.join(cells)} us", flush=True)
    if "cuda" in us:
        print(
            f"    cuda {flops / us['cuda'] / 1e6:.0f} TFLOP/s, {us['bf16'] / us['cuda']:.2f} x bf16"
        )
    if options.out:
        with open(options.out, "a") as file:
            row = {"case": str(case), "product": product, "us": us, "flops": flops}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
