"""float8_linear against its float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import OnReference, magnitude_float8, sample_float8
from torch import Tensor

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_linear


class TestFloat8Linear(OnReference):
    op = float8_linear

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, *args in sample_float8(dtype):
            yield Sample(name, tuple(args))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_float8(*args)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_in_every_place(kind: torch.dtype) -> None:
    codes = (torch.arange(256)[None] + torch.arange(256)[:, None]).to(torch.uint8).view(kind)
    finite = codes.float().isfinite()
    codes = torch.where(finite, codes.float(), 0.0).to(kind)
    for dtype in (torch.float32, torch.bfloat16):
        y = float8_linear(torch.eye(256, dtype=dtype), codes, torch.ones(1, 1), 256, 256)
        assert torch.equal(y, codes.T.to(dtype))


def test_each_block_has_its_scale() -> None:
    codes = torch.ones(5, 20).to(torch.float8_e4m3fn)
    scale = torch.arange(1.0, 10.0).reshape(3, 3)
    y = float8_linear(torch.eye(20), codes, scale, 2, 8)
    expected = scale.repeat_interleave(2, 0)[:5].repeat_interleave(8, 1)[:, :20]
    assert torch.equal(y, expected.T)


def test_nan_codes_and_scales_are_kept() -> None:
    codes, scale = torch.ones(3, 16).to(torch.float8_e4m3fn), torch.ones(3, 1)
    codes[0, 3] = torch.nan
    scale[1] = torch.nan
    y = float8_linear(torch.ones(2, 16), codes, scale, 1, 16)
    assert y[:, :2].isnan().all() and torch.equal(y[:, 2], torch.full((2,), 16.0))


def test_no_input_features_and_no_rows() -> None:
    kind = torch.float8_e4m3fn
    y = float8_linear(
        torch.randn(3, 0), torch.zeros(4, 0).to(kind), torch.ones(4, 0), 1, 8, torch.ones(4)
    )
    assert torch.equal(y, torch.ones(3, 4))
    none = torch.zeros(0, 8).to(kind)
    assert float8_linear(torch.randn(3, 8), none, torch.ones(1, 1), 8, 8).shape == (3, 0)
    assert float8_linear(torch.randn(3, 8), none, torch.ones(0, 1), 1, 8).shape == (3, 0)


def test_refusals_are_in_the_callers_words() -> None:
    x, codes, scale = torch.randn(3, 32), torch.zeros(8, 32).to(torch.float8_e5m2), torch.ones(8, 1)
    with pytest.raises(ValueError, match="32 columns; x has 16"):
        float8_linear(x[:, :16], codes, scale, 1, 32)
    with pytest.raises(TypeError, match=r"must be torch\.float8_e4m3fn or torch\.float8_e5m2"):
        float8_linear(x, codes.float(), scale, 1, 32)
    with pytest.raises(ValueError, match="two dimensions"):
        float8_linear(x, codes[0], scale, 1, 32)
    with pytest.raises(TypeError, match=r"must be torch\.float32"):
        float8_linear(x, codes, scale.bfloat16(), 1, 32)
    with pytest.raises(ValueError, match=r"blocks of 4 x 16 take \(2, 2\)"):
        float8_linear(x, codes, scale, 4, 16)
    with pytest.raises(ValueError, match="block_k a multiple of 8"):
        float8_linear(x, codes, scale, 1, 12)
    with pytest.raises(ValueError, match="block_n is positive"):
        float8_linear(x, codes, scale, 0, 32)
    with pytest.raises(ValueError, match="bias has shape"):
        float8_linear(x, codes, scale, 1, 32, torch.zeros(7))
    with pytest.raises(RuntimeError, match="on device cpu and codes on meta"):
        float8_linear(x, codes.to("meta"), scale, 1, 32)
