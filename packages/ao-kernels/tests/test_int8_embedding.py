"""int8_embedding against its reference, bit for bit."""

from collections.abc import Iterator

import torch
from embedding_contract import EmbeddingContract
from linear_samples import sample_int8

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_embedding


class TestInt8Embedding(EmbeddingContract):
    op = int8_embedding

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, _, codes, scale, group_size, _ in sample_int8(torch.float32):
            indices = torch.randint(codes.shape[0], (2, 5))
            yield Sample(name, (indices, codes, scale, group_size, dtype))


def test_every_code() -> None:
    codes = torch.arange(-128, 128).to(torch.int8).reshape(4, 64)
    rows = int8_embedding(torch.arange(4), codes, torch.full((1, 8), 0.5), 8, torch.float32)
    assert torch.equal(rows, codes.float() / 2)
