"""What the benchmarks of embeddings share: rows of a table against F.embedding of a dense one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from measure import Memory, Report, alternate
from torch import Tensor
from torch.nn.functional import embedding

from ao_kernels import Op


class Table(NamedTuple):
    """A case: ``others`` are the arguments of the op after the indices."""

    case: str
    others: tuple[Any, ...]
    dense: Tensor
    row_bytes: int  # codes and scales of a row


def compare(
    op: Op, tables: Callable[[Namespace, torch.dtype], Iterator[Table]], parser: ArgumentParser
) -> None:
    """Measures ``op`` on every table, for every number M of tokens that the options name."""
    parser.set_defaults(shapes="49152x576,128256x4096", tokens="1,16,128,1024")
    options = parser.parse_args()
    report, memory = Report(op.name, options.out), Memory()
    with torch.inference_mode():
        for case, others, dense, row_bytes in tables(options, getattr(torch, options.dtype)):
            for M in map(int, options.tokens.split(",")):
                picks = [torch.randint(len(dense), (M,)) for _ in range(options.layers)]
                assert torch.equal(op(picks[0], *others), op.reference(picks[0], *others))
                n_bytes = M * (row_bytes + dense[0].nbytes)
                sides = {
                    "ours": [lambda i=i: op(i, *others) for i in picks],
                    options.dtype: [lambda i=i: embedding(i, dense) for i in picks],
                    "read": memory.reads(n_bytes, len(picks)),
                }
                times = alternate(sides, memory, seconds=options.seconds)
                report.add(f"{case} M={M}", times, n_bytes)
