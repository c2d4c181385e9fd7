"""Rows of an int8 table against F.embedding of a dense table; --shapes gives rows x columns.

python benchmarks/bench_int8_embedding.py --shapes 49152x576 --tokens 1,128
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
from embedding_tables import Table, compare
from measure import arguments, shapes

from ao_kernels.ops import int8_embedding


def tables(options: Namespace, dtype: torch.dtype) -> Iterator[Table]:
    for N, K in shapes(options.shapes):
        codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
        yield Table(f"{N}x{K}", (codes, torch.rand(N, 1), K, dtype), codes.to(dtype), K + 4)


if __name__ == "__main__":
    compare(int8_embedding, tables, arguments(__doc__))
