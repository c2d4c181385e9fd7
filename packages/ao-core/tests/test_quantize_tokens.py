"""Activations to int8: codes, scales and zeros bit for bit as the equations say, in float32."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ao_core.numerics import quantize_tokens

F32 = np.float32
TINY = torch.finfo(torch.float32).tiny
MAX = torch.finfo(torch.float32).max


def definition(x: Tensor, mapping: str) -> tuple[list[list[int]], list[float], list[float] | None]:
    """The equations, one number at a time, every operation rounded to float32."""
    codes, scales, zeros = [], [], []
    for row in x.float().numpy():
        low, high = F32(min(row.min(initial=0), 0)), F32(max(row.max(initial=0), 0))
        if mapping == "symmetric":
            s = max(F32(np.abs(row).max(initial=0)) / F32(127), F32(TINY))
            inverse = F32(1) / s
            codes.append([int(np.clip(np.rint(v * inverse), -127, 127)) for v in row])
        else:
            with np.errstate(over="ignore"):
                span = high - low
            s = span / F32(255) if np.isfinite(span) else high / F32(255) - low / F32(255)
            s = max(s, F32(TINY))
            inverse = F32(1) / s
            zero = np.clip(np.rint(F32(-128) - low * inverse), -128, 127)
            codes.append([int(np.clip(np.rint(v * inverse) + zero, -128, 127)) for v in row])
            zeros.append(float(zero))
        scales.append(float(s))
    return codes, scales, zeros if mapping == "asymmetric" else None


def rows() -> Tensor:
    """Tokens of many kinds, 24 values each."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 24, generator=generator)
    special = torch.zeros(8, 24)
    special[1, 3] = 5
    special[2, 3] = -5
    special[3] = 1e-45
    special[4] = torch.linspace(-1e-38, 1e-39, 24)
    special[5, :2] = torch.tensor([MAX, -MAX])
    special[6] = torch.arange(24) * 0.5 - 6
    special[7] = -0.0
    halves = torch.arange(-12, 12) + 0.5
    ties = torch.cat((halves[:-1], torch.tensor([127.0])))[None]
    sizes = normal * 10.0 ** torch.arange(-32, 32)[:, None]
    return torch.cat((normal, normal.abs(), -normal.abs(), sizes, special, ties))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
def test_bit_for_bit(mapping: str, dtype: torch.dtype) -> None:
    x = rows().to(dtype)
    x = x[x.isfinite().all(-1)]
    codes, scale, zero = quantize_tokens(x, mapping=mapping)
    expected = definition(x, mapping)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32
    assert codes.tolist() == expected[0]
    assert scale[:, 0].tolist() == expected[1] and scale.shape == (len(x), 1)
    if mapping == "asymmetric":
        assert zero is not None and zero.dtype == torch.float32
        assert zero[:, 0].tolist() == expected[2] and zero.shape == scale.shape
    else:
        assert zero is None


def test_error_is_bounded() -> None:
    x = rows()
    for mapping, limit in (("symmetric", 0.5), ("asymmetric", 1.0)):  # zero is rounded as well
        codes, scale, zero = quantize_tokens(x, mapping=mapping)
        back = (codes.double() - (0 if zero is None else zero.double())) * scale.double()
        assert ((back - x.double()).abs() <= scale.double() * (limit + 1e-4)).all()
        if zero is not None:
            assert (back[x == 0] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
def test_non_finite_tokens(mapping: str, value: float) -> None:
    x = rows()[:6]
    expected = quantize_tokens(x, mapping=mapping)
    x[2, 5] = value
    codes, scale, zero = quantize_tokens(x, mapping=mapping)
    others = [0, 1, 3, 4, 5]
    assert scale[2].isnan().all() and scale[others].isfinite().all()
    assert (codes[2] == 0).all() and torch.equal(codes[others], expected[0][others])
    assert zero is None or zero.isfinite().all()


@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
def test_empty(mapping: str) -> None:
    for shape in ((0, 8), (3, 0), (0, 0)):
        codes, scale, zero = quantize_tokens(torch.zeros(shape), mapping=mapping)
        assert codes.shape == shape and codes.dtype == torch.int8
        assert scale.shape == (shape[0], 1) and (scale == TINY).all()
        assert zero is None or zero.shape == scale.shape


def test_strides_do_not_matter() -> None:
    x = rows()
    for mapping in ("symmetric", "asymmetric"):
        for a, b in zip(
            quantize_tokens(x, mapping=mapping),
            quantize_tokens(x.t().contiguous().t(), mapping=mapping),
            strict=True,
        ):
            assert (a is None and b is None) or torch.equal(a, b)


def test_given_scale() -> None:
    """One scale for all tokens: codes beyond the range take its end, tokens that are not finite
    are marked."""
    x = torch.tensor([[1.0, -3.0, 2.5], [1000.0, -1000.0, 0.5], [torch.inf, 1.0, 0.0]])
    codes, scale, zero = quantize_tokens(x, scale=torch.full((1, 1), 0.5))
    assert codes.tolist() == [[2, -6, 5], [127, -127, 1], [0, 0, 0]] and zero is None
    assert scale[:2].tolist() == [[0.5], [0.5]] and scale[2].isnan().all()
    with pytest.raises(ValueError, match="given scale goes with mapping='symmetric'"):
        quantize_tokens(x, mapping="asymmetric", scale=torch.ones(1, 1))


def test_unknown_mapping() -> None:
    with pytest.raises(ValueError, match="mapping is one of symmetric, asymmetric; got 'x'"):
        quantize_tokens(torch.ones(1, 8), mapping="x")
