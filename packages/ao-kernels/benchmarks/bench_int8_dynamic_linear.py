"""int8 linear with int8 activations against F.linear and the same written with torch._int_mm.

python benchmarks/bench_int8_dynamic_linear.py --shapes 4096x4096 --tokens 1,8,32,128
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, check_close, read_layers, shapes
from torch import Tensor
from torch.nn.functional import linear

from ao_core.numerics import quantize_tokens
from ao_kernels.ops import int8_dynamic_linear


def main() -> None:
    options = arguments(__doc__).parse_args()
    report, memory = Report("int8_dynamic_linear", options.out), Memory()
    dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            layers = [_layer(N, K) for _ in range(options.layers)]
            weights = [(codes.float() * scale) for codes, scale in layers]
            dense = [w.to(dtype) for w in weights]
            n_bytes = layers[0][0].nbytes + layers[0][1].nbytes
            for M in map(int, options.tokens.split(",")):
                x = torch.randn(M, K).to(dtype)
                y = int8_dynamic_linear(x, *layers[0])
                check_close("ours", y, int8_dynamic_linear.reference(x, *layers[0]), 0.004)
                check_close("ours", y, linear(x.float(), weights[0]), 0.03)
                check_close("_int_mm", _with_int_mm(x, *layers[0]), y, 0.01)
                sides = {
                    "ours": [lambda a=a: int8_dynamic_linear(x, a[0], a[1]) for a in layers],
                    options.dtype: [lambda v=v: linear(x, v) for v in dense],
                    "_int_mm": [lambda a=a: _with_int_mm(x, *a) for a in layers],
                    "read": read_layers([layer[:2] for layer in layers]),
                }
                times = alternate(sides, memory, seconds=options.seconds)
                report.add(f"{N}x{K} M={M}", times, n_bytes)


def _layer(N: int, K: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    return codes, torch.rand(N, 1) / (64 * K**0.5)


def _with_int_mm(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    q, s, _ = quantize_tokens(x)
    return (torch._int_mm(q, codes.T) * s * scale.T).to(x.dtype)


if __name__ == "__main__":
    main()
