"""Products of quantized operands on a GPU against bfloat16: one linear's three products, and those
of a mixture of experts.

"row", "tensor", "1x128 x 128x128" (forward, dgrad), "1x128 x 1x128" (wgrad), "mx" (emulated) and
"int8" multiply codes that are there; the limit is the rate of a large float8 product of cuBLAS.
"grouped" is a whole step of experts: casts, forward, dgrad and wgrad beside torch._grouped_mm; with
--parts each of them alone, too, beside its product in bfloat16 (casts beside the copy of as much).

python benchmarks/bench_float8_matmul.py --shapes 4096x4096,14336x4096 --tokens 8192
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure_cuda import Report, alternate, arguments, check_close, shapes
from torch import Tensor

from ao_kernels.ops import (
    float8_grouped_matmul,
    float8_grouped_wgrad,
    float8_matmul,
    int8_matmul,
    quantize_block_both,
    quantize_grouped_both,
    quantize_mx,
    quantize_rowwise_both,
    quantize_tensorwise_both,
)

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LAYERS = 4


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(shapes="4096x4096,14336x4096", tokens="8192", seconds=0.3)
    parser.add_argument("--kinds", default="tensor,e5m2,row,forward,wgrad,mx,int8")
    parser.add_argument("--experts", default="8", help="E,E,...; empty: no grouped products")
    parser.add_argument("--parts", action="store_true", help="of grouped products, each alone")
    options = parser.parse_args()
    report = Report("float8_matmul", options.out)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            for M in map(int, options.tokens.split(",")):
                for kind in filter(None, options.kinds.split(",")):
                    tried(kind, one, report, kind, M, N, K, options.seconds)
                for E in map(int, filter(None, options.experts.split(","))):
                    sizes = M, N, K, E
                    tried(f"grouped {E}", grouped, report, *sizes, options.seconds, options.parts)


def tried(name: str, measure: Callable[..., None], *args: Any) -> None:
    """A case that fails, or gives something else than bfloat16 does, is left out and says so."""
    try:
        measure(*args)
    except (AssertionError, RuntimeError, ValueError) as error:
        print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)


def operands(kind: str, x: Tensor, w: Tensor) -> tuple[Any, ...]:
    """a, a_scale, b, b_scale."""
    if kind in ("tensor", "e5m2"):
        a, _, a_scale = quantize_tensorwise_both(x, E5M2 if kind == "e5m2" else E4M3)
        b, _, b_scale = quantize_tensorwise_both(w, E4M3)
        return a, a_scale, b, b_scale
    if kind == "row":
        return *quantize_rowwise_both(x, E4M3)[:2], *quantize_rowwise_both(w, E4M3)[:2]
    if kind == "int8":
        return *quantize_rowwise_both(x, torch.int8)[:2], *quantize_rowwise_both(w, torch.int8)[:2]
    if kind == "mx":
        return *quantize_mx(x, E4M3)[:2], *quantize_mx(w, E4M3)[:2]
    rows = 128 if kind == "forward" else 1
    a, a_scale, *_ = quantize_block_both(x, E4M3, 1, 128)
    return a, a_scale, *quantize_block_both(w, E4M3, rows, 128)[:2]


def one(report: Report, kind: str, M: int, N: int, K: int, seconds: float) -> None:
    x = torch.randn(M, K, device="cuda").bfloat16()
    weights = [torch.randn(N, K, device="cuda").bfloat16() for _ in range(LAYERS)]
    op = int8_matmul if kind == "int8" else float8_matmul
    args = [operands(kind, x, w) for w in weights]
    check_close(kind, op(*args[0]), x @ weights[0].T, 0.02 if kind == "int8" else 0.08)
    sides: dict[str, list[Callable[[], object]]] = {
        "ours": [partial(op, *each) for each in args],
        "bf16": [partial(torch.mm, x, w.T) for w in weights],
    }
    rate = torch.int8 if kind == "int8" else torch.bfloat16 if kind == "mx" else E4M3
    measured = alternate(sides, seconds=seconds, least_rounds=5, product=rate)
    n_bytes = M * K + N * K + 2 * M * N
    chosen = op.choice(*args[0]).kernel
    report.add(f"{M}x{N}x{K} {kind} {chosen}", measured, n_bytes, 2 * M * N * K)


def grouped(report: Report, M: int, N: int, K: int, E: int, seconds: float, parts: bool) -> None:
    """A step of experts whose sizes differ; weights are cast in each."""
    x, grad = (torch.randn(M, n, device="cuda").bfloat16() for n in (K, N))
    w = torch.randn(E, N, K, device="cuda").bfloat16() / K**0.5
    chosen = torch.rand(M, E, device="cuda").argmax(1)
    offsets = torch.bincount(chosen, minlength=E).cumsum(0).to(torch.int32)

    def ours(w: Tensor) -> tuple[Tensor, ...]:
        a, a_scale, at, at_scale, ends = quantize_grouped_both(x, E4M3, offsets)
        g, g_scale, gt, gt_scale, _ = quantize_grouped_both(grad, E4M3, offsets)
        b, b_scale, bt, bt_scale = quantize_rowwise_both(w, E4M3)
        y = float8_grouped_matmul(a, a_scale, b, b_scale, offsets)
        dgrad = float8_grouped_matmul(g, g_scale, bt, bt_scale, offsets)
        return y, dgrad, float8_grouped_wgrad(gt, gt_scale, at, at_scale, ends)

    def bf16(w: Tensor) -> tuple[Tensor, ...]:
        y = torch._grouped_mm(x, w.mT, offs=offsets)
        dgrad = torch._grouped_mm(grad, w, offs=offsets)
        return y, dgrad, torch._grouped_mm(grad.T, x, offs=offsets)

    for name, found, wanted in zip(("forward", "dgrad", "wgrad"), ours(w), bf16(w), strict=True):
        check_close(f"grouped {name}", found, wanted, 0.08)
    sides = {"ours": [partial(ours, w)] * 2, "bf16": [partial(bf16, w)] * 2}
    measured = alternate(sides, seconds=seconds, least_rounds=5, product=E4M3)
    report.add(f"{M}x{N}x{K} grouped {E}", measured, 0, 6 * M * N * K)
    if not parts:
        return
    a, a_scale, at, at_scale, ends = quantize_grouped_both(x, E4M3, offsets)
    g, g_scale, gt, gt_scale, _ = quantize_grouped_both(grad, E4M3, offsets)
    b, b_scale, bt, bt_scale = quantize_rowwise_both(w, E4M3)
    alone: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "cast of x": (partial(quantize_grouped_both, x, E4M3, offsets), x.clone),
        "cast of the gradient": (partial(quantize_grouped_both, grad, E4M3, offsets), grad.clone),
        "cast of w": (partial(quantize_rowwise_both, w, E4M3), w.clone),
        "forward": (
            partial(float8_grouped_matmul, a, a_scale, b, b_scale, offsets),
            partial(torch._grouped_mm, x, w.mT, offs=offsets),
        ),
        "dgrad": (
            partial(float8_grouped_matmul, g, g_scale, bt, bt_scale, offsets),
            partial(torch._grouped_mm, grad, w, offs=offsets),
        ),
        "wgrad": (
            partial(float8_grouped_wgrad, gt, gt_scale, at, at_scale, ends),
            partial(torch._grouped_mm, grad.T, x, offs=offsets),
        ),
    }
    for name, (part, other) in alone.items():
        sides = {"ours": [part] * 2, "bf16": [other] * 2}
        flops = 0 if name.startswith("cast") else 2 * M * N * K
        n_bytes = 4 * {"x": M * K, "w": E * N * K}.get(name[-1], M * N) if not flops else 0
        measured = alternate(sides, seconds=seconds, least_rounds=5, product=E4M3)
        report.add(f"{M}x{N}x{K} grouped {E}, {name}", measured, n_bytes, flops)


if __name__ == "__main__":
    main()
