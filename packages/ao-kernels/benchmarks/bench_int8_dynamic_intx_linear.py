"""Linears of 1- to 8-bit weights with int8 activations against F.linear.

python benchmarks/bench_int8_dynamic_intx_linear.py --bits 2,3,5,6 --tokens 1,32 --group-size 32
"""

from __future__ import annotations

import argparse

import torch
from measure import Memory, Report, alternate, arguments, check_close, read_layers, shapes
from torch import Tensor
from torch.nn.functional import linear

from ao_core.packing import unpack
from ao_kernels.ops import int8_dynamic_int4_linear, int8_dynamic_intx_linear


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(group_size=32)
    parser.add_argument("--bits", default="1,2,3,4,5,6,7,8", help="b,b,...")
    options = parser.parse_args()
    report = Report("int8_dynamic_intx_linear", options.out)
    for bits in map(int, options.bits.split(",")):
        run(options, report, bits)


def run(options: argparse.Namespace, report: Report, bits: int) -> None:
    """All shapes and tokens of one width; 4 bits run through their own op."""
    memory, dtype, g = Memory(), getattr(torch, options.dtype), options.group_size
    four = bits == 4
    op = int8_dynamic_int4_linear if four else int8_dynamic_intx_linear
    others = (None, g) if four else (None, bits, g)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            layers = [_layer(N, K, bits, g) for _ in range(options.layers)]
            weights = [_dequantize(*layer, bits, g, K).to(dtype) for layer in layers]
            n_bytes = layers[0][0].nbytes + layers[0][1].nbytes
            for M in map(int, options.tokens.split(",")):
                x = torch.randn(M, K).to(dtype)
                y = op(x, *layers[0], *others)
                check_close("ours", y, op.reference(x, *layers[0], *others), 0.004)
                check_close("ours", y, linear(x.float(), weights[0].float()), 0.03)
                sides = {
                    "ours": [lambda a=a: op(x, a[0], a[1], *others) for a in layers],
                    options.dtype: [lambda w=w: linear(x, w) for w in weights],
                    "read": read_layers([layer[:2] for layer in layers]),
                }
                times = alternate(sides, memory, seconds=options.seconds)
                report.add(f"{bits} bits {N}x{K} g{g} M={M}", times, n_bytes)


def _layer(N: int, K: int, bits: int, g: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 256, (N, -(-K // 8) * bits), dtype=torch.uint8)
    return codes, (torch.rand(N, -(-K // g)) / (2**bits * K**0.5)).bfloat16()


def _dequantize(codes: Tensor, scale: Tensor, bits: int, g: int, K: int) -> Tensor:
    per_code = scale.float().repeat_interleave(g, 1)[:, :K]
    return (unpack(codes, bits, K).float() - 2 ** (bits - 1)) * per_code


if __name__ == "__main__":
    main()
