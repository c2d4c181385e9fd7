"""Rows of an int8 table against F.embedding of a dense table; --shapes gives rows x columns.

python benchmarks/bench_int8_embedding.py --shapes 49152x576 --tokens 1,128
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, shapes
from torch.nn.functional import embedding

from ao_kernels.ops import int8_embedding


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(shapes="49152x576,128256x4096", tokens="1,16,128,1024")
    options = parser.parse_args()
    report, memory = Report("int8_embedding", options.out), Memory()
    dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
            dense, others = codes.to(dtype), (codes, torch.rand(N, 1), K, dtype)
            for M in map(int, options.tokens.split(",")):
                picks = [torch.randint(N, (M,)) for _ in range(options.layers)]
                assert torch.equal(
                    int8_embedding(picks[0], *others),
                    int8_embedding.reference(picks[0], *others),
                )
                n_bytes = M * (K + 4 + K * dtype.itemsize)
                sides = {
                    "ours": [lambda i=i: int8_embedding(i, *others) for i in picks],
                    options.dtype: [lambda i=i: embedding(i, dense) for i in picks],
                    "read": memory.reads(n_bytes, len(picks)),
                }
                times = alternate(sides, memory, seconds=options.seconds)
                report.add(f"{N}x{K} M={M}", times, n_bytes)


if __name__ == "__main__":
    main()
