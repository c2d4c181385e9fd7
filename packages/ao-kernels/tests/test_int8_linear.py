"""int8_linear against its float64 reference, on every instruction set of this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_samples import isa_variants, magnitude_int8, sample_int8
from torch import Tensor

from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int8_linear


class TestInt8Linear(OpContract):
    op = int8_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, x, codes, scale, group_size, bias in sample_int8(dtype):
            yield Sample(name, (x, codes, scale, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_int8(*args)


@pytest.mark.parametrize("M", [1, 256], ids=["dots", "tiles"])
def test_every_code_in_every_place(M: int) -> None:
    codes = (torch.arange(256)[None] + torch.arange(256)[:, None]) % 256 - 128
    scale, x = torch.ones(1, 1), torch.eye(256)
    for label, context in isa_variants():
        with context():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows = x.to(dtype).split(M)
                y = torch.cat([int8_linear(r, codes.to(torch.int8), scale, 256) for r in rows])
                assert torch.equal(y, codes.T.to(dtype)), f"{label}, {dtype}"


@pytest.mark.parametrize("M", [1, 3, 40])
@pytest.mark.parametrize("group_size", [8, 24, 64])
def test_a_nan_scale_stays_in_its_row(M: int, group_size: int) -> None:
    """Where the last 128 codes of a row are not all there, no kernel reads scales behind it: they
    are those of the next row, or what an earlier call left."""
    K = 257
    codes = torch.randint(-127, 128, (7, K), dtype=torch.int8)
    scale, x = torch.rand(7, -(-K // group_size)), torch.randn(M, K)
    scale[3, 0] = torch.nan
    for label, context in isa_variants():
        with context():
            int8_linear(x, codes, torch.full_like(scale, torch.nan), group_size)
            y = int8_linear(x, codes, scale, group_size)
            assert y[:, 3].isnan().all() and y.isnan().sum() == M, f"{label}: {y[0]}"


def test_refusals_are_in_the_callers_words() -> None:
    codes, x, scale = torch.zeros(8, 32, dtype=torch.int8), torch.randn(3, 32), torch.ones(8, 1)
    with pytest.raises(ValueError, match="32 columns; x has 16"):
        int8_linear(x[:, :16], codes, scale, 32)
    with pytest.raises(TypeError, match=r"must be torch\.int8"):
        int8_linear(x, codes.to(torch.uint8), scale, 32)
