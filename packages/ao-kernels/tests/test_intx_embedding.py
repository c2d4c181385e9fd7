"""intx_embedding against its reference, bit for bit, in every width."""

from collections.abc import Iterator

import pytest
import torch
from embedding_contract import EmbeddingContract
from linear_samples import sample_intx

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import intx_embedding


class TestIntxEmbedding(EmbeddingContract):
    op = intx_embedding

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in (4, 1, 2, 3, 5, 6, 7, 8):
            for name, x, codes, scale, zero, group_size, _ in sample_intx(bits, torch.float32):
                indices = torch.randint(codes.shape[0], (2, 5))
                args = (indices, codes, scale, zero, bits, group_size, x.shape[-1], dtype)
                yield Sample(name, args)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_in_every_place(bits: int) -> None:
    codes = ((torch.arange(77)[None] + torch.arange(2**bits)[:, None]) % 2**bits).to(torch.uint8)
    packed, scale = pack(codes, bits), torch.full((1, 1), 0.25)
    indices = torch.arange(2**bits)
    rows = intx_embedding(indices, packed, scale, None, bits, 77, 77, torch.float32)
    assert torch.equal(rows, (codes.float() - 2 ** (bits - 1)) / 4)


def test_the_length_must_fit_the_codes() -> None:
    packed = pack(torch.zeros(3, 20, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="28 input features of 3 bits take 12"):
        intx_embedding(torch.tensor([0]), packed, torch.ones(3, 1), None, 3, 32, 28, torch.float32)
