"""Rows of a 1- to 8-bit table against F.embedding of a dense table; --shapes gives rows x columns.

python benchmarks/bench_intx_embedding.py --shapes 49152x576 --tokens 1,128 --bits 4
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
from embedding_tables import Table, compare
from measure import arguments, shapes

from ao_kernels.ops import intx_embedding


def tables(options: Namespace, dtype: torch.dtype) -> Iterator[Table]:
    g = options.group_size
    for N, K in shapes(options.shapes):
        dense = torch.randn(N, K).to(dtype)
        for bits in map(int, options.bits.split(",")):
            codes = torch.randint(0, 256, (N, -(-K // 8) * bits), dtype=torch.uint8)
            scale = torch.rand(N, -(-K // g)).bfloat16()
            others = (codes, scale, None, bits, g, K, dtype)
            row_bytes = codes[0].nbytes + scale[0].nbytes
            yield Table(f"{bits} bits {N}x{K} g{g}", others, dense, row_bytes)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.set_defaults(group_size=32)
    parser.add_argument("--bits", default="4,3,8", help="b,b,...")
    compare(intx_embedding, tables, parser)
