"""int8_static_linear against its float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import OnReference
from linear_samples import magnitude_int8, sample_int8
from torch import Tensor

from ao_core.numerics import quantize_tokens
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_dynamic_linear, int8_static_linear, layout


class TestInt8StaticLinear(OnReference):
    op = int8_static_linear

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for index, (name, x, codes, scale, _, bias) in enumerate(sample_int8(dtype)):
            x_scale = torch.full((1, 1), [3.0, 0.5][index % 2] / 127)  # cuts half of the samples
            yield Sample(name, (x, codes, scale[:, :1].contiguous(), x_scale, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, x_scale, bias = args
        q, s, _ = quantize_tokens(x.reshape(-1, x.shape[-1]), scale=x_scale)
        size = (q.double() * s.double()).reshape(x.shape)
        return magnitude_int8(size, codes, scale, x.shape[-1], bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, _, bias = args
        w_NK = layout.dequantize_int8(codes, scale, group_size=x.shape[-1], dtype=torch.float64)
        return layout.linear(x, w_NK, bias)


def test_the_scale_of_the_data_is_the_dynamic_one() -> None:
    x, codes = torch.randn(1, 64), torch.randint(-127, 128, (20, 64), dtype=torch.int8)
    scale, x_scale = torch.rand(20, 1), (x.abs().amax() / 127).reshape(1, 1)
    y = int8_static_linear(x, codes, scale, x_scale)
    torch.testing.assert_close(y, int8_dynamic_linear(x, codes, scale), rtol=1e-6, atol=1e-4)


def test_what_is_beyond_the_range_is_cut() -> None:
    codes, ones = torch.eye(32).to(torch.int8), torch.ones(1, 1)
    x = torch.full((4, 32), 1e6)
    x[1], x[2, 3], x[3, 0] = -128.0, torch.inf, torch.nan
    y = int8_static_linear(x, codes, ones, ones)
    assert torch.equal(y[0], torch.full((32,), 127.0)) and torch.equal(y[1], -y[0])
    assert y[2:].isnan().all()


def test_no_tokens_and_no_features() -> None:
    codes, ones = torch.zeros(4, 8, dtype=torch.int8), torch.ones(1, 1)
    assert int8_static_linear(torch.randn(0, 8), codes, ones, ones).shape == (0, 4)
    y = int8_static_linear(torch.randn(3, 0), codes[:, :0], torch.ones(4, 0), ones)
    assert torch.equal(y, torch.zeros(3, 4))


def test_refusals_are_in_the_callers_words() -> None:
    x, codes, scale = torch.randn(3, 32), torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1)
    with pytest.raises(ValueError, match=r"x_scale has shape \(8, 1\); it must be \(1, 1\)"):
        int8_static_linear(x, codes, scale, scale)
    with pytest.raises(TypeError, match="x_scale has dtype"):
        int8_static_linear(x, codes, scale, torch.ones(1, 1).double())
    with pytest.raises(TypeError, match=r"must be torch\.int8"):
        int8_static_linear(x, codes.float(), scale, torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="x_scale on meta"):
        int8_static_linear(x, codes, scale, torch.ones(1, 1, device="meta"))
