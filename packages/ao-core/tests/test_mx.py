"""MXFP8 against the OCP specification, and scales rounded up to powers of two."""

import math

import pytest
import torch

from ao_core.mx import EMAX, dequantize_mx, quantize_mx
from ao_core.numerics import next_power_of_two, quantize_blocks

every_dtype = pytest.mark.parametrize("dtype", list(EMAX), ids=str)


@every_dtype
def test_scales_and_codes_of_blocks(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 70, generator=generator) * torch.logspace(-44, 37, 60)[:, None]
    codes, scale = quantize_mx(x, dtype=dtype)
    assert codes.shape == x.shape and scale.shape == (60, 3)
    high = torch.finfo(dtype).max
    for row in range(60):
        for block in range(3):
            part = x[row, block * 32 : block * 32 + 32].double()
            amax = float(part.abs().max())
            e = -127 if amax == 0 else math.floor(math.log2(amax)) - EMAX[dtype]
            e = min(max(e, -127), 127)
            assert int(scale.view(torch.uint8)[row, block]) == e + 127
            wanted = (part / 2.0**e).clamp(-high, high).float().to(dtype)
            found = codes[row, block * 32 : block * 32 + 32]
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@every_dtype
def test_every_code_comes_back(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    values = values[values.isfinite()]
    x = torch.nn.functional.pad(values[:, None], (0, 31), value=float(2.0 ** EMAX[dtype]))
    codes, scale = quantize_mx(x, dtype=dtype)
    assert (scale.float() == 1).all() and torch.equal(codes[:, 0].float(), values)
    assert torch.equal(dequantize_mx(codes, scale), x)


def test_nan_inf_and_nothing() -> None:
    for value in (math.nan, math.inf, -math.inf):
        x = torch.zeros(1, 96)
        x[0, 40] = value
        codes, scale = quantize_mx(x, dtype=torch.float8_e4m3fn)
        assert scale.view(torch.uint8).tolist() == [[0, 255, 0]]
        assert codes[0, 32:64].float().isnan().all() and not codes[0, :32].float().any()
        assert dequantize_mx(codes, scale).isnan().sum() == 32
    for shape in [(0, 40), (3, 0)]:
        codes, scale = quantize_mx(torch.zeros(shape), dtype=torch.float8_e5m2)
        assert codes.shape == shape and scale.shape == (shape[0], -(-shape[1] // 32))
    with pytest.raises(ValueError, match="MX elements are"):
        quantize_mx(torch.zeros(1, 1), dtype=torch.int8)


def test_powers_of_two() -> None:
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.tensor([1.0, 1.0000001, 0.75, 3e-5, tiny, 1e38, math.nan])
    found = next_power_of_two(scale)
    assert found[:6].tolist() == [1.0, 2.0, 1.0, 2.0**-15, tiny, 2.0**127] and found[6].isnan()
    codes, scale = quantize_blocks(
        torch.tensor([[500.0, 1.0]]), block=(1, 2), dtype=torch.float8_e4m3fn, power_of_two=True
    )
    assert scale.item() == 2.0 and codes.float().tolist() == [[256.0, 0.5]]
