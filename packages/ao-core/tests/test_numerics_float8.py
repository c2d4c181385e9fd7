"""Float8 numerics: every code, every midpoint between codes, blocks of every shape."""

import itertools

import pytest
import torch
from torch import Tensor

from ao_core.numerics import (
    choose_float8_scale,
    dequantize_float8,
    quantize_float8,
    quantize_float8_tokens,
)

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
TINY = torch.finfo(torch.float32).tiny


def codes_of(dtype: torch.dtype) -> Tensor:
    """All 256 codes."""
    return torch.arange(256, dtype=torch.uint8).view(dtype)


def value(code: int, dtype: torch.dtype) -> float:
    """What a code means, from the definition of the format: sign, exponent, mantissa."""
    exponent_bits, mantissa_bits = (4, 3) if dtype == torch.float8_e4m3fn else (5, 2)
    bias = 2 ** (exponent_bits - 1) - 1
    sign = -1.0 if code & 128 else 1.0
    exponent, mantissa = (code & 127) >> mantissa_bits, code & (2**mantissa_bits - 1)
    if dtype == torch.float8_e4m3fn and code & 127 == 127:
        return float("nan")
    if dtype == torch.float8_e5m2 and exponent == 31:
        return sign * float("inf") if mantissa == 0 else float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


@every_dtype
def test_every_code_has_its_value(dtype: torch.dtype) -> None:
    expected = torch.tensor([value(code, dtype) for code in range(256)])
    found = dequantize_float8(codes_of(dtype), torch.ones(1), block=(256,))
    assert torch.equal(found.nan_to_num(nan=12345.0), expected.nan_to_num(nan=12345.0))
    real = ~expected.isnan()
    assert torch.equal(found.signbit()[real], expected.signbit()[real])


@every_dtype
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0, 1 / 3, 1e-30, 1e30, TINY])
def test_every_finite_code_comes_back(dtype: torch.dtype, scale: float) -> None:
    codes = codes_of(dtype)
    factor = torch.full((1,), scale)
    w = dequantize_float8(codes, factor, block=(256,))
    again = quantize_float8(w, factor, block=(256,), dtype=dtype)
    finite = codes.float().isfinite() & (w.abs() >= TINY) | (codes.float() == 0)
    assert torch.equal(again.view(torch.uint8)[finite], codes.view(torch.uint8)[finite])
    assert again[codes.float().isnan()].float().isnan().all()
    high = torch.finfo(dtype).max
    assert again[codes.float().isposinf()].float().eq(high).all()
    assert again[codes.float().isneginf()].float().eq(-high).all()


@every_dtype
def test_rounds_to_the_nearest_and_halves_to_even(dtype: torch.dtype) -> None:
    positive = [value(code, dtype) for code in range(128)]
    finite = [v for v in positive if v < float("inf")]
    for code, (low, high) in enumerate(itertools.pairwise(finite)):
        middle = (low + high) / 2
        w = torch.tensor([middle, -middle])
        below, above = (torch.nextafter(w, w * factor) for factor in (0, 2))
        even = code + code % 2
        for x, expected in ((below, code), (w, even), (above, code + 1)):
            found = quantize_float8(x, torch.ones(1), block=(2,), dtype=dtype).view(torch.uint8)
            assert found.tolist() == [expected, expected + 128]


@every_dtype
def test_saturates(dtype: torch.dtype) -> None:
    high = torch.finfo(dtype).max
    w = torch.tensor([high, high * 1.01, 1e38, torch.inf, -high * 4, -torch.inf, torch.nan])
    found = quantize_float8(w, torch.ones(1), block=(7,), dtype=dtype).float()
    assert found[:6].tolist() == [high, high, high, high, -high, -high] and found[6].isnan()


def slow_scale(w: Tensor, block: tuple[int, ...], high: float) -> Tensor:
    """Each block's largest magnitude / high, block by block."""
    counts = [-(-n // b) for n, b in zip(w.shape, block, strict=True)]
    scale = torch.empty(counts)
    for at in itertools.product(*map(range, counts)):
        part = w[tuple(slice(i * b, (i + 1) * b) for i, b in zip(at, block, strict=True))]
        scale[at] = (part.double().abs().max() / high).float().clamp(min=TINY)
    return scale


@every_dtype
@pytest.mark.parametrize(
    "block", [(1, 1), (6, 10), (1, 10), (6, 1), (2, 5), (4, 3), (5, 7), (100, 100)]
)
def test_blocks(block: tuple[int, ...], dtype: torch.dtype) -> None:
    w = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    scale = choose_float8_scale(w, block=block, dtype=dtype)
    assert torch.equal(scale, slow_scale(w, block, torch.finfo(dtype).max))
    codes = quantize_float8(w, scale, block=block, dtype=dtype)
    back = dequantize_float8(codes, scale, block=block)
    for i, j in itertools.product(range(6), range(10)):
        s = scale[i // block[0], j // block[1]]
        assert torch.equal(codes[i, j].float(), (w[i, j] / s).to(dtype).float())
        assert back[i, j] == codes[i, j].float() * s
    half = 2.0 ** (-4 if dtype == torch.float8_e4m3fn else -3)  # half a unit in the last place
    smallest = value(1, dtype) / 2 * scale.max()
    assert ((back - w).abs() <= w.abs() * half * (1 + 2**-20) + smallest).all()


@every_dtype
def test_three_dimensions(dtype: torch.dtype) -> None:
    w = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    scale = choose_float8_scale(w, block=(1, 2, 4), dtype=dtype)
    assert torch.equal(scale, slow_scale(w, (1, 2, 4), torch.finfo(dtype).max))
    whole = dequantize_float8(
        quantize_float8(w, scale, block=(1, 2, 4), dtype=dtype), scale, block=(1, 2, 4)
    )
    for w_e, scale_e, whole_e in zip(w, scale, whole, strict=True):
        codes = quantize_float8(w_e, scale_e, block=(2, 4), dtype=dtype)
        assert torch.equal(dequantize_float8(codes, scale_e, block=(2, 4)), whole_e)


@every_dtype
def test_special_blocks(dtype: torch.dtype) -> None:
    w = torch.ones(2, 24)
    w[0, :4], w[0, 4:8] = 0, 1e-45
    w[0, 8], w[0, 12], w[1, 0] = torch.inf, torch.nan, -torch.inf
    scale = choose_float8_scale(w, block=(1, 4), dtype=dtype)
    assert scale[0, 0] == TINY and scale[0, 1] == TINY
    codes = quantize_float8(w, scale, block=(1, 4), dtype=dtype)
    back = dequantize_float8(codes, scale, block=(1, 4))
    assert (back[0, :8] == 0).all()
    assert back[0, 8:16].isnan().all() and back[1, :4].isnan().all()
    assert torch.equal(back[0, 16:], w[0, 16:]) and torch.equal(back[1, 4:], w[1, 4:])


@every_dtype
def test_output_dtypes_and_empty_tensors(dtype: torch.dtype) -> None:
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    scale = choose_float8_scale(w, block=(1, 6), dtype=dtype)
    codes = quantize_float8(w, scale, block=(1, 6), dtype=dtype)
    back = dequantize_float8(codes, scale, block=(1, 6))
    for out in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(dequantize_float8(codes, scale, block=(1, 6), dtype=out), back.to(out))
    half = choose_float8_scale(w.bfloat16(), block=(1, 6), dtype=dtype)
    assert half.dtype == torch.float32
    for shape in ((0, 6), (4, 0)):
        empty = torch.zeros(shape)
        scale = choose_float8_scale(empty, block=(2, 3), dtype=dtype)
        assert quantize_float8(empty, scale, block=(2, 3), dtype=dtype).shape == shape


@pytest.mark.parametrize("block", [(1, 24), (5, 24), (1, 8), (1, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tokens(block: tuple[int, int], dtype: torch.dtype) -> None:
    """By the definition: the scale of each block, and x times the rounded reciprocal of it."""
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[1] *= 1e-30
    codes, scale = quantize_float8_tokens(x, block=block)
    assert codes.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    assert torch.equal(scale, slow_scale(x.float(), block, 448.0))
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:5, :24]
    expected = (x.float() * (1 / spread)).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))
    again = quantize_float8_tokens(x, block=block, scale=scale)
    assert torch.equal(codes.view(torch.uint8), again[0].view(torch.uint8))


def test_tokens_that_are_not_finite() -> None:
    x = torch.ones(3, 8)
    x[1, 2], x[2, 7] = torch.inf, torch.nan
    codes, scale = quantize_float8_tokens(x, block=(1, 8))
    assert scale.isnan().flatten().tolist() == [False, True, True]
    assert codes[0].float().tolist() == [448.0] * 8 and codes[1:].float().isnan().all()
    codes, scale = quantize_float8_tokens(x, block=(3, 8), scale=torch.full((1, 1), 2.0))
    found = codes.float()
    assert found[1, 2].isnan() and found[2, 7].isnan() and found.isnan().sum() == 2
    assert found[0].tolist() == [0.5] * 8


def test_no_tokens() -> None:
    for shape, block in (((0, 8), (1, 8)), ((0, 8), (1, 4)), ((3, 0), (1, 1))):
        codes, scale = quantize_float8_tokens(torch.zeros(shape), block=block)
        assert codes.shape == shape and not scale.numel()
    given = quantize_float8_tokens(torch.zeros(0, 8), block=(1, 8), scale=torch.ones(1, 1))
    assert given[0].shape == (0, 8)


def test_refused_shapes() -> None:
    w = torch.ones(4, 6)
    with pytest.raises(ValueError, match="differ in rank"):
        choose_float8_scale(w, block=(6,))
    message = (
        r"blocks of \(1, 3\) in a tensor of \(4, 6\) have scales of shape \(4, 2\), got \(4, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        quantize_float8(w, torch.ones(4, 1), block=(1, 3))
    with pytest.raises(ValueError, match="have scales of shape"):
        dequantize_float8(w.to(torch.float8_e4m3fn), torch.ones(4, 6), block=(1, 3))
