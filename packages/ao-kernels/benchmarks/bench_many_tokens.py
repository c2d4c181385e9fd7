"""Weight-only linears of many tokens on a GPU, both ways there are, against bf16 F.linear: fused
tiles ("tiles") and the whole weight dequantized for the library's product ("whole"). The tables at
the end show times over bf16's, and what dequantizing alone takes. "op" is what the op itself takes:
the dispatch.

python benchmarks/bench_many_tokens.py --out ../../benchmarks/results/kernels-nvidia-h200.jsonl
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from measure_cuda import SPREAD_BYTES, Report, Sides, arguments, count_layers, graph_times, shapes
from report import Times, check_close
from torch import Tensor
from torch.nn.functional import linear
from tuned_formats import FORMATS, Format, Layer

from ao_kernels import OPS, _cuda

_FORMATS = {
    each.op.removesuffix("_linear"): each
    for each in FORMATS
    if each.op in ("int4_linear", "int8_linear", "float8_linear")
}
_BITS = {"int4": 4, "int8": 0, "float8": 0}
_LIMIT = "bf16"  # what the product alone takes


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(
        shapes="14336x4096,4096x14336,6144x4096,4096x4096",
        tokens="512,1024,2048,4096,8192",
        seconds=0.0,
    )
    parser.add_argument("--formats", default="int4,int8,float8")
    parser.add_argument("--rounds", type=int, default=9, help="of a case, at least")
    options = parser.parse_args()
    begin, report = time.perf_counter(), Report("many_tokens", options.out)
    results: dict[str, dict[str, Times]] = {}
    alone: list[str] = []
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            weights = [
                torch.randn(N, K, device="cuda").bfloat16() / K**0.5
                for _ in range(count_layers(2 * N * K))
            ]
            for name in options.formats.split(","):
                layers = _layers(_FORMATS[name], N, K)
                alone.append(_dequantizing(name, layers, N, K))
                for M in map(int, options.tokens.split(",")):
                    case = f"{name} {N}x{K} M={M}"
                    results[case] = _case(name, layers, weights, M, options)
                    us = results[case]
                    report.line(case, {"ours": us["op"], **us}, us["bf16"].median, _LIMIT)
    _table(results)
    print("\n".join(alone))
    print(f"{len(results)} cases in {time.perf_counter() - begin:.0f} s")


def _layers(each: Format, N: int, K: int) -> list[Layer]:
    first = each.make(N, K, "cuda")
    return [first, *(each.make(N, K, "cuda") for _ in range(count_layers(first.nbytes) - 1))]


def _case(
    name: str, layers: list[Layer], weights: list[Tensor], M: int, options: Any
) -> dict[str, Times]:
    each, op = _FORMATS[name], OPS[_FORMATS[name].op]
    K = weights[0].shape[1]
    x = torch.randn(M, K, device="cuda").bfloat16()
    expected = linear(x, layers[0].dense())
    ways: dict[str, Any] = {"op": op}
    op.why_not(*layers[0].args(x))  # loads the kernels
    for label, kernel in (("tiles", "cuda"), ("whole", "cuda:dequantize")):
        found = next(k for k in op.kernels if k.name == kernel)
        if found.supports(*layers[0].args(x)) is None:
            ways[label] = found.run
    sides: Sides = {}
    count = min(count_layers(layers[0].nbytes + x.nbytes + expected.nbytes), len(layers))
    for label, run in ways.items():
        check_close(f"{name} {label}", run(*layers[0].args(x)), expected, each.tolerance)
        sides[label] = [partial(run, *layer.args(x)) for layer in layers[:count]]
    sides["bf16"] = [partial(linear, x, w) for w in weights]
    return graph_times(
        sides, seconds=options.seconds, least_rounds=options.rounds, warm_seconds=0.02
    )


def _parameters(name: str, others: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, int, int]:
    """scale, zero, input and output features that share a scale; of an op's arguments after codes,
    without bias."""
    assert others[-1] is None
    if name == "float8":
        scale, block_n, block_k, _ = others
        return scale, None, block_k, block_n
    if name == "int4":
        scale, zero, group_size, _ = others
        return scale, zero, group_size, 1
    scale, group_size, _ = others
    return scale, None, group_size, 1


def _dequantizing(name: str, layers: list[Layer], N: int, K: int) -> str:
    """What dequantizing alone takes, to memory that the L2 cache does not hold."""
    like = torch.empty(0, K, dtype=torch.bfloat16, device="cuda")
    calls: Sides = {"whole": []}
    for layer in layers[: max(2, SPREAD_BYTES // (2 * N * K))]:
        _, codes, *others = layer.args(like)
        scale, zero, block_k, block_n = _parameters(name, tuple(others))
        call = partial(_cuda.dequantize, like, codes, scale, zero, _BITS[name], block_k, block_n)
        calls["whole"].append(call)
    times = graph_times(calls, seconds=0.0, least_rounds=5, warm_seconds=0.02)
    us, moved = times["whole"].median, layers[0].nbytes + 2 * N * K
    return f"dequantizing {name} {N}x{K}: {us:.1f} us, {moved / us / 1e3:.0f} GB/s"


def _table(results: dict[str, dict[str, Times]]) -> None:
    """Times over bf16's; the best of them marked."""
    names = list(dict.fromkeys(name for us in results.values() for name in us if name != "bf16"))
    print(f"{'':26s} {'bf16':>7s} " + " ".join(f"{name:>9s}" for name in names))
    for case, us in results.items():
        ratios = {n: us[n].median / us["bf16"].median for n in names if n in us}
        best = min(ratios[n] for n in ratios if n != "op")
        cells = [
            f"{ratios[n]:8.3f}{'*' if ratios[n] == best else ' '}" if n in ratios else " " * 9
            for n in names
        ]
        print(f"{case:26s} {us['bf16'].median:7.1f} " + " ".join(cells))


if __name__ == "__main__":
    main()
