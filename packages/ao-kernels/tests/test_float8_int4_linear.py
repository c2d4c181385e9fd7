"""float8_int4_linear against its float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import OnReference, float8_activations
from linear_samples import magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_int4_linear, int4_linear, layout


class TestFloat8Int4Linear(OnReference):
    op = float8_int4_linear

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, x, codes, scale, zero, group_size, bias in sample_intx(4, dtype):
            yield Sample(name, (x, codes, scale, zero, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        return magnitude_intx(float8_activations(x, "row"), codes, scale, zero, 4, group_size, bias)

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


def test_activations_that_float8_holds_lose_nothing() -> None:
    codes = pack(torch.randint(0, 16, (50, 320), dtype=torch.uint8), 4)
    scale = torch.rand(50, 10).bfloat16()
    x = torch.randn(7, 320).to(torch.float8_e4m3fn).float()
    x[:, 0] = 448.0  # makes the scale of the token 1
    args = (codes, scale, None, 32)
    torch.testing.assert_close(
        float8_int4_linear(x, *args), int4_linear(x, *args), rtol=1e-5, atol=1e-3
    )


def test_refusals_are_in_the_callers_words() -> None:
    codes, x = pack(torch.zeros(8, 32, dtype=torch.uint8), 4), torch.randn(3, 32)
    with pytest.raises(ValueError, match="32 input features of 4 bits take 16"):
        float8_int4_linear(x, codes[:, :8], torch.ones(8, 1), None, 32)
    with pytest.raises(ValueError, match=r"take \(8, 2\)"):
        float8_int4_linear(x, codes, torch.ones(8, 1), None, 16)
    with pytest.raises(RuntimeError, match="zero on meta"):
        zero = torch.ones(8, 1, device="meta")
        float8_int4_linear(x, codes, torch.ones(8, 1), zero, 32)
