"""intx_linear, 1 to 8 bits, against its float64 reference, on every instruction set of this
machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_samples import isa_variants, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int4_linear, intx_linear


class TestIntxLinear(OpContract):
    op = intx_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in (3, 1, 2, 4, 5, 6, 7, 8):
            for name, x, codes, scale, zero, group_size, bias in sample_intx(bits, dtype):
                yield Sample(name, (x, codes, scale, zero, bits, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, bits, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, bits, group_size, bias)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("M", [1, 256], ids=["dots", "tiles"])
def test_every_code_in_every_place(bits: int, M: int) -> None:
    # An identity picks out single weights: every code value meets every place of a 256-code row.
    codes = torch.arange(256).repeat(2**bits, 1) + torch.arange(2**bits)[:, None]
    codes = (codes % 2**bits).to(torch.uint8)
    packed, scale, x = pack(codes, bits), torch.ones(1, 1), torch.eye(256)
    expected = codes.float().T - 2 ** (bits - 1)
    for label, context in isa_variants():
        with context():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows = x.to(dtype).split(M)
                y = torch.cat([intx_linear(r, packed, scale, None, bits, 256) for r in rows])
                assert torch.equal(y, expected.to(dtype)), f"{label}, {dtype}"


def test_four_bits_are_int4_linear() -> None:
    for _, x, codes, scale, zero, group_size, bias in sample_intx(4, torch.bfloat16):
        y = intx_linear(x, codes, scale, zero, 4, group_size, bias)
        assert torch.equal(y, int4_linear(x, codes, scale, zero, group_size, bias))


@pytest.mark.parametrize("bits", range(1, 9))
def test_padding_codes_have_no_influence(bits: int) -> None:
    K = 20
    codes = torch.randint(0, 2**bits, (8, K), dtype=torch.uint8)
    clean, dirty = pack(codes, bits), pack(codes, bits, pad=2**bits - 1)
    x, scale = torch.randn(3, K).bfloat16(), torch.rand(8, 1).bfloat16()
    y = intx_linear(x, clean, scale, None, bits, K)
    assert torch.equal(intx_linear(x, dirty, scale, None, bits, K), y)


def test_refusals_are_in_the_callers_words() -> None:
    packed = pack(torch.zeros(8, 32, dtype=torch.uint8), 3)
    x, scale = torch.randn(3, 32), torch.ones(8, 1)
    with pytest.raises(ValueError, match="bits is 9"):
        intx_linear(x, packed, scale, None, 9, 32)
    with pytest.raises(ValueError, match="32 input features of 5 bits take 20"):
        intx_linear(x, packed, scale, None, 5, 32)
