"""float8_static_linear against its float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import OnReference, float8_activations, magnitude_float8, sample_float8
from torch import Tensor

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_dynamic_linear, float8_static_linear, layout


class TestFloat8StaticLinear(OnReference):
    op = float8_static_linear

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for index, (name, x, codes, scale, block_n, block_k, bias) in enumerate(
            sample_float8(dtype)
        ):
            x_scale = torch.full((1, 1), [3.0, 0.5][index % 2] / 448)  # cuts half of the samples
            yield Sample(name, (x, codes, scale, x_scale, block_n, block_k, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, x_scale, block_n, block_k, bias = args
        q = float8_activations(x, "tensor", scale=x_scale)
        return magnitude_float8(q, codes, scale, block_n, block_k, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, _, block_n, block_k, bias = args
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float64)
        return layout.linear(x, w_NK, bias)


def test_the_scale_of_the_data_is_the_dynamic_one() -> None:
    x, codes = torch.randn(5, 64), torch.randn(20, 64).to(torch.float8_e4m3fn)
    x_scale = (x.abs().amax() / 448).reshape(1, 1)
    args = (codes, torch.rand(20, 1))
    assert torch.equal(
        float8_static_linear(x, *args, x_scale, 1, 64),
        float8_dynamic_linear(x, *args, 1, 64, "tensor"),
    )


def test_what_is_beyond_the_range_is_cut() -> None:
    codes, ones = torch.eye(32).to(torch.float8_e4m3fn), torch.ones(1, 1)
    x = torch.full((3, 32), 1e6)
    x[1], x[2, 3] = -500.0, torch.inf
    y = float8_static_linear(x, codes, ones, ones, 32, 32)
    assert torch.equal(y[0], torch.full((32,), 448.0)) and torch.equal(y[1], -y[0])
    assert y[2].isnan().all()  # cutting inf would hide it


def test_refusals_are_in_the_callers_words() -> None:
    x, codes, scale = (
        torch.randn(3, 32),
        torch.zeros(8, 32).to(torch.float8_e4m3fn),
        torch.ones(8, 1),
    )
    with pytest.raises(ValueError, match=r"x_scale has shape \(1,\); it must be \(1, 1\)"):
        float8_static_linear(x, codes, scale, torch.ones(1), 1, 32)
    with pytest.raises(TypeError, match=r"x_scale has dtype torch\.bfloat16"):
        float8_static_linear(x, codes, scale, torch.ones(1, 1).bfloat16(), 1, 32)
    with pytest.raises(RuntimeError, match="x_scale on meta"):
        float8_static_linear(x, codes, scale, torch.ones(1, 1, device="meta"), 1, 32)
