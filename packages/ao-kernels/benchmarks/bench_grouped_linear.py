"""Grouped linears of a mixture of experts on a GPU against torch._grouped_mm in bfloat16:
microseconds a projection and the share of the limit, which is reading the experts that have tokens
once, or the products at cuBLAS's rate where those take longer.

python benchmarks/bench_grouped_linear.py --models qwen3 --formats int4,float8 --tokens 1,256

Tokens choose their experts at random, every call anew: T tokens make T * k rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from measure_cuda import SPREAD_BYTES, Report, alternate, arguments, check_close
from torch import Tensor

from ao_kernels.ops import (
    float8_dynamic_grouped_linear,
    float8_grouped_linear,
    float8_int4_grouped_linear,
    int4_grouped_linear,
    int8_dynamic_grouped_linear,
    int8_grouped_linear,
    layout,
)

DEVICE = "cuda"
WHOLE = 1 << 30
E4M3 = torch.float8_e4m3fn
# Experts, experts of a token, and the projections N x K of an expert.
MODELS = {
    "mixtral": (8, 2, [(28672, 4096), (4096, 14336)]),
    "qwen3": (128, 8, [(1536, 2048), (2048, 768)]),
}
LAYERS = 2  # distinct weights; calls choose other experts of them


class Layer(NamedTuple):
    """Arguments between x and offsets, of which the first are codes (E, N, ...) and scale."""

    op: Any
    weight: tuple[Any, ...]
    dense: Callable[[tuple[Any, ...]], Tensor]  # of an expert's weight, (N, K) float32


def int4(op: Any, E: int, N: int, K: int, g: int) -> Layer:
    codes = torch.randint(0, 256, (E, N, K // 2), dtype=torch.uint8, device=DEVICE)
    scale = (torch.rand(E, N, K // g, device=DEVICE) / K**0.5).bfloat16()

    def dense(weight: tuple[Any, ...]) -> Tensor:
        codes, scale, zero, g = weight
        return layout.dequantize_intx(
            codes, scale, zero, bits=4, group_size=g, length=K, dtype=torch.float32
        )

    return Layer(op, (codes, scale, None, g), dense)


def int8(op: Any, E: int, N: int, K: int, g: int) -> Layer:
    codes = torch.randint(-127, 128, (E, N, K), dtype=torch.int8, device=DEVICE)
    scale = torch.rand(E, N, 1, device=DEVICE) / (64 * K**0.5)
    others = (K,) if op is int8_grouped_linear else ()
    return Layer(op, (codes, scale, *others), lambda w: w[0].float() * w[1])


def float8(op: Any, E: int, N: int, K: int, g: int) -> Layer:
    codes = torch.randn(E, N, K, device=DEVICE, dtype=torch.bfloat16).mul_(64).to(E4M3)
    scale = (torch.rand(E, N, 1, device=DEVICE) + 0.5) / (64 * K**0.5)
    others = ("row",) if op is float8_dynamic_grouped_linear else ()
    return Layer(op, (codes, scale, 1, WHOLE, *others), lambda w: w[0].float() * w[1])


# How a layer is made, its op, and the relative error that its activations may add.
FORMATS: dict[str, tuple[Callable[..., Layer], Any, float]] = {
    "int4": (int4, int4_grouped_linear, 0.01),
    "int8": (int8, int8_grouped_linear, 0.01),
    "float8": (float8, float8_grouped_linear, 0.01),
    "int8_dynamic": (int8, int8_dynamic_grouped_linear, 0.03),
    "float8_dynamic": (float8, float8_dynamic_grouped_linear, 0.06),
    "float8_int4": (int4, float8_int4_grouped_linear, 0.06),
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", default="mixtral,qwen3", help=",".join(MODELS))
    parser.add_argument("--formats", default="int4,float8,float8_dynamic", help=",".join(FORMATS))
    parser.set_defaults(tokens="1,16,256,4096")
    options = parser.parse_args()
    report = Report("grouped_linear", options.out)
    with torch.inference_mode():
        for model in options.models.split(","):
            E, k, projections = MODELS[model]
            for N, K in projections:
                for name in options.formats.split(","):
                    layers, dense = made(name, E, N, K, options.group_size)
                    for T in map(int, options.tokens.split(",")):
                        case = f"{model} {name} {N}x{K} T={T}*{k}"
                        measure(report, case, T, k, layers, dense, name, options.seconds)


def made(name: str, E: int, N: int, K: int, g: int) -> tuple[list[Layer], list[Tensor]]:
    """Layers, and the weights (E, N, K) in bfloat16 that they stand for."""
    make, op, _ = FORMATS[name]
    layers = [make(op, E, N, K, g) for _ in range(LAYERS)]
    dense = [
        torch.stack([layer.dense(expert(layer, e)).bfloat16() for e in range(E)])
        for layer in layers
    ]
    return layers, dense


def expert(layer: Layer, e: int) -> tuple[Any, ...]:
    """The weight of one expert."""
    return tuple(value[e] if isinstance(value, Tensor) else value for value in layer.weight)


def routed(T: int, E: int, k: int) -> Tensor:
    """(E,) int32: ends of the experts' rows when each of T tokens chooses k experts."""
    chosen = torch.rand(T, E, device=DEVICE).topk(k).indices.flatten()
    return torch.bincount(chosen, minlength=E).cumsum(0).to(torch.int32)


def bytes_read(layer: Layer, offsets: Tensor) -> int:
    """Of the experts that have rows."""
    used = int((offsets.diff(prepend=offsets.new_zeros(1)) > 0).sum())
    fields = [value for value in layer.weight if isinstance(value, Tensor)]
    return sum(field.nbytes for field in fields) * used // len(offsets)


def measure(
    report: Report,
    case: str,
    T: int,
    k: int,
    layers: list[Layer],
    dense: list[Tensor],
    name: str,
    seconds: float,
) -> None:
    E, N, K = dense[0].shape
    x = torch.randn(T * k, K, device=DEVICE).bfloat16()
    first = bytes_read(layers[0], routed(T, E, k))
    routes = [routed(T, E, k) for _ in range(max(LAYERS, -(-SPREAD_BYTES // first)))]
    sides = {
        "ours": [
            lambda a=layers[i % LAYERS], offs=offs: a.op(x, *a.weight, offs, None)
            for i, offs in enumerate(routes)
        ],
        "bf16": [
            lambda w=dense[i % LAYERS], offs=offs: torch._grouped_mm(x, w.mT, offs=offs)
            for i, offs in enumerate(routes)
        ],
    }
    check_close("ours", sides["ours"][0](), sides["bf16"][0](), FORMATS[name][2])
    measured = alternate(sides, seconds=seconds, product=torch.bfloat16 if T >= 256 else None)
    weights = sum(bytes_read(layers[0], offs) for offs in routes) // len(routes)
    rows = T * k
    report.add(case, measured, weights + x.nbytes + rows * N * 2, 2 * rows * N * K)


if __name__ == "__main__":
    main()
