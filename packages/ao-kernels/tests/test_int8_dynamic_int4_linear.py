"""int8_dynamic_int4_linear against its float64 reference, and against int8_dynamic_intx_linear with
4 bits."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import token_magnitude
from linear_samples import isa_variants, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int8_dynamic_int4_linear, int8_dynamic_intx_linear, layout


class TestInt8DynamicInt4Linear(OpContract):
    op = int8_dynamic_int4_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, x, codes, scale, zero, group_size, bias in sample_intx(4, dtype):
            yield Sample(name, (x, codes, scale, zero, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        size = token_magnitude(x, "asymmetric")
        return magnitude_intx(size, codes, scale, zero, 4, group_size, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        w_NK = layout.dequantize_intx(
            codes,
            scale,
            zero,
            bits=4,
            group_size=group_size,
            length=x.shape[-1],
            dtype=torch.float64,
        )
        return layout.linear(x, w_NK, bias)


@pytest.mark.parametrize("M", [1, 3, 17])
@pytest.mark.parametrize("with_zero", [False, True])
def test_equals_the_general_op(M: int, with_zero: bool) -> None:
    codes = pack(torch.randint(0, 16, (50, 320), dtype=torch.uint8), 4)
    scale, zero = torch.rand(50, 10).bfloat16(), (torch.rand(50, 10) * 15).bfloat16()
    args = (torch.randn(M, 320).bfloat16(), codes, scale, zero if with_zero else None)
    bias = torch.randn(50)
    for _, context in isa_variants():
        with context():
            special = int8_dynamic_int4_linear(*args, 32, bias)
            assert torch.equal(special, int8_dynamic_intx_linear(*args, 4, 32, bias))


def test_refusals_are_in_the_callers_words() -> None:
    codes, x = pack(torch.zeros(8, 32, dtype=torch.uint8), 4), torch.randn(3, 32)
    with pytest.raises(ValueError, match="32 input features of 4 bits take 16"):
        int8_dynamic_int4_linear(x, codes[:, :8], torch.ones(8, 1), None, 32)
    with pytest.raises(ValueError, match=r"take \(8, 2\)"):
        int8_dynamic_int4_linear(x, codes, torch.ones(8, 1), None, 16)
