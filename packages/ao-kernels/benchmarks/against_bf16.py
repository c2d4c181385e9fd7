"""What the benchmarks of linears that no other library has share: ours against bfloat16."""

from __future__ import annotations

from functools import partial

import torch
from measure_cuda import Report, alternate, arguments, check_close, count_layers, shapes
from torch.nn.functional import linear
from tuned_formats import FORMATS

from ao_kernels import OPS


def main(op: str, doc: str, product: torch.dtype) -> None:
    """The formats of ``op``; ``product``: what its matrix product multiplies."""
    parser = arguments(doc)
    parser.set_defaults(tokens="1,16,64,256,1024,4096")
    options = parser.parse_args()
    report = Report(op, options.out)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            for each in (each for each in FORMATS if each.op == op):
                first = each.make(N, K, "cuda")
                more = (each.make(N, K, "cuda") for _ in range(count_layers(first.nbytes) - 1))
                layers = [first, *more]
                dense = [layer.dense() for layer in layers[: count_layers(2 * N * K)]]
                for M in map(int, options.tokens.split(",")):
                    x = torch.randn(M, K, device="cuda").bfloat16()
                    ours = [partial(OPS[op], *layer.args(x)) for layer in layers]
                    check_close("ours", ours[0](), linear(x, dense[0]), each.tolerance)
                    sides = {"ours": ours, "bf16": [partial(linear, x, w) for w in dense]}
                    measured = alternate(sides, seconds=options.seconds, product=product)
                    n_bytes = first.nbytes + x.nbytes + M * N * x.itemsize
                    report.add(f"{each.kind} {N}x{K} M={M}", measured, n_bytes, 2 * M * N * K)
