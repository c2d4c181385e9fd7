"""float8_embedding against its reference, bit for bit."""

from collections.abc import Iterator

import pytest
import torch
from embedding_contract import EmbeddingContract
from float8_samples import OnReference, sample_float8

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_embedding, layout


class TestFloat8Embedding(EmbeddingContract):
    op = float8_embedding
    variants = OnReference.variants  # no kernel depends on the instruction set
    test_calls_after_fork = None  # torch's own threads do not survive a fork
    test_float64_runs_the_reference_and_says_so = None  # the reference is all there is

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, _, codes, scale, block_n, block_k, _ in sample_float8(torch.float32):
            indices = torch.randint(codes.shape[0], (2, 5))
            yield Sample(name, (indices, codes, scale, block_n, block_k, dtype))


@pytest.mark.parametrize("blocks", [(1, 24), (1, 8), (4, 8), (100, 100)])
def test_rows_are_those_of_the_table(blocks: tuple[int, int]) -> None:
    codes = torch.randn(10, 24).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-10 // blocks[0]), -(-24 // blocks[1]))
    table = layout.dequantize_float8(codes, scale, *blocks, torch.float32)
    indices = torch.tensor([[9, 0, 3], [4, 4, 7]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows = float8_embedding(indices, codes, scale, *blocks, dtype)
        assert torch.equal(rows, table[indices].to(dtype))
