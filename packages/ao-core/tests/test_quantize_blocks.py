"""Activations to float8 and int8, in blocks: codes and scales bit for bit as the equations say."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks, quantize_tokens

F32 = np.float32
TINY = F32(torch.finfo(torch.float32).tiny)
DTYPES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def neighbours(dtype: torch.dtype) -> list[float]:
    """All values of codes, in order."""
    if dtype == torch.int8:
        return [float(c) for c in range(-127, 128)]
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return sorted({v for v in values.tolist() if math.isfinite(v)})


def nearest(value: float, values: list[float], dtype: torch.dtype) -> float:
    """The value of a code that is nearest; of two, the one whose code is even."""
    ordered = sorted(values, key=lambda v: abs(v - value))[:2]
    if len(ordered) == 2 and abs(ordered[0] - value) == abs(ordered[1] - value):
        codes = [torch.tensor(abs(v)).to(dtype).view(torch.uint8).item() for v in ordered]
        return ordered[0] if codes[0] % 2 == 0 else ordered[1]
    return ordered[0]


def definition(x: Tensor, dtype: torch.dtype, scale: np.float32 | None) -> tuple[list[float], F32]:
    """One block, one number at a time, every operation rounded to float32; finite x only."""
    values = neighbours(dtype)
    high = F32(max(values))
    numbers = x.float().flatten().numpy()
    s = scale if scale is not None else max(F32(np.abs(numbers).max(initial=0)) / high, TINY)
    inverse = F32(1) / s
    codes = []
    for v in numbers:
        scaled = v * inverse if dtype == torch.int8 else v / s
        codes.append(nearest(float(np.clip(scaled, -high, high)), values, dtype))
    return codes, s


def sample() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 10, generator=generator) * torch.logspace(-3, 3, 70).view(7, 10)
    x[0, :3] = 0
    x[1] = 1e-45
    x[6] = torch.arange(10) / 2
    return x


@every_dtype
@pytest.mark.parametrize("block", [(1, 10), (7, 10), (2, 4), (3, 1), (128, 128)], ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_bit_for_bit(x_dtype: torch.dtype, block: tuple[int, int], dtype: torch.dtype) -> None:
    x = sample().to(x_dtype)
    codes, scale = quantize_blocks(x, block=block, dtype=dtype)
    assert codes.dtype == dtype and scale.dtype == torch.float32
    for r, g in itertools.product(*map(range, scale.shape)):
        at = tuple(slice(i * b, (i + 1) * b) for i, b in zip((r, g), block, strict=True))
        expected, s = definition(x[at], dtype, None)
        assert scale[r, g].item() == s
        assert codes[at].float().flatten().tolist() == expected


@every_dtype
@pytest.mark.parametrize("value", [0.5, 0.03, 1e-4, 1e4, 3e-39])
def test_a_given_scale(value: float, dtype: torch.dtype) -> None:
    x, given = sample(), torch.tensor([[value]])
    with np.errstate(over="ignore"):
        expected, _ = definition(x, dtype, F32(value))
    codes, scale = quantize_blocks(x, block=(7, 10), dtype=dtype, scale=given)
    assert scale is given
    assert codes.float().flatten().tolist() == expected


@every_dtype
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_blocks_that_are_not_finite(value: float, dtype: torch.dtype) -> None:
    x = sample()
    expected = quantize_blocks(x, block=(2, 5), dtype=dtype)
    x[2, 6] = value
    codes, scale = quantize_blocks(x, block=(2, 5), dtype=dtype)
    assert scale[1, 1].isnan() and scale.isnan().sum() == 1
    bad = codes[2:4, 5:].view(torch.uint8)
    assert (bad == (0 if dtype == torch.int8 else 0x7F)).all()
    others = torch.ones(7, 10, dtype=torch.bool)
    others[2:4, 5:] = False
    before = expected[0].view(torch.uint8)
    assert torch.equal(codes.view(torch.uint8)[others], before[others])


@every_dtype
def test_a_given_scale_saturates(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, torch.nan, -torch.nan])
    codes, _ = quantize_blocks(x, block=(6,), dtype=dtype, scale=torch.tensor([0.5]))
    high = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    assert codes[:4].float().tolist() == [high, -high, high, -high]
    assert codes[4:].view(torch.uint8).tolist() == [0 if dtype == torch.int8 else 0x7F] * 2


@every_dtype
def test_zeros_keep_their_sign(dtype: torch.dtype) -> None:
    codes, _ = quantize_blocks(torch.tensor([0.0, -0.0, 1.0]), block=(3,), dtype=dtype)
    sign = 0 if dtype == torch.int8 else 0x80
    assert codes.view(torch.uint8)[:2].tolist() == [0, sign]


@every_dtype
def test_no_elements(dtype: torch.dtype) -> None:
    for shape, block, scales in [
        ((0, 8), (1, 8), (0, 1)),
        ((3, 0), (1, 0), (3, 1)),
        ((3, 0), (1, 4), (3, 0)),
        ((0,), (0,), (1,)),
    ]:
        codes, scale = quantize_blocks(torch.zeros(shape), block=block, dtype=dtype)
        assert codes.shape == shape and scale.shape == scales and (scale == TINY.item()).all()


def test_rows_of_int8_are_tokens() -> None:
    x = sample()
    codes, scale, _ = quantize_tokens(x)
    found = quantize_blocks(x, block=(1, 10), dtype=torch.int8)
    assert torch.equal(found[0], codes) and torch.equal(found[1], scale)
