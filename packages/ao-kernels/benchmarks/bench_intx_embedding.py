"""Rows of a table of 1- to 8-bit codes against F.embedding of a dense table; --shapes gives rows x
columns.

python benchmarks/bench_intx_embedding.py --shapes 49152x576 --tokens 1,128 --bits 4
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, shapes
from torch.nn.functional import embedding

from ao_kernels.ops import intx_embedding


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(group_size=32, shapes="49152x576,128256x4096", tokens="1,16,128,1024")
    parser.add_argument("--bits", default="4,3,8", help="b,b,...")
    options = parser.parse_args()
    report, memory, g = Report("intx_embedding", options.out), Memory(), options.group_size
    dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            dense = torch.randn(N, K).to(dtype)
            for bits in map(int, options.bits.split(",")):
                codes = torch.randint(0, 256, (N, -(-K // 8) * bits), dtype=torch.uint8)
                scale = torch.rand(N, -(-K // g)).bfloat16()
                others = (codes, scale, None, bits, g, K, dtype)
                for M in map(int, options.tokens.split(",")):
                    picks = [torch.randint(N, (M,)) for _ in range(options.layers)]
                    assert torch.equal(
                        intx_embedding(picks[0], *others),
                        intx_embedding.reference(picks[0], *others),
                    )
                    n_bytes = M * (codes[0].nbytes + scale[0].nbytes + K * dtype.itemsize)
                    sides = {
                        "ours": [lambda i=i: intx_embedding(i, *others) for i in picks],
                        options.dtype: [lambda i=i: embedding(i, dense) for i in picks],
                        "read": memory.reads(n_bytes, len(picks)),
                    }
                    times = alternate(sides, memory, seconds=options.seconds)
                    report.add(f"{bits} bits {N}x{K} g{g} M={M}", times, n_bytes)


if __name__ == "__main__":
    main()
