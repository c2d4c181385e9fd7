"""Numerics of MXFP8: blocks of 32 elements that share a power of two, in plain torch.

OCP Microscaling Formats (MX) Specification v1.0, section 6.3: with emax the exponent of the largest
power of two of the element format (8 for e4m3, 15 for e5m2),

    e = clamp(floor(log2(amax|x|)) - emax, -127, 127);  code = float8(clamp(x / 2**e, -max8, max8))

rounded half to even. The scale 2**e is stored as e8m0: the byte e + 127, and 255 for NaN. amax may
reach almost 2**(emax + 1) of the scaled block, more than the largest code: such elements take the
largest code, as the specification says. A block of zeros, or of magnitudes below 2**(emax - 127),
has e = -127. A block that holds NaN or inf has the scale NaN, and NaN codes.
"""

import torch
from torch import Tensor

from .numerics import groups

__all__ = ["EMAX", "MX_BLOCK", "dequantize_mx", "quantize_mx"]

MX_BLOCK = 32
EMAX = {torch.float8_e4m3fn: 8, torch.float8_e5m2: 15}
_BIAS = 127
_NAN = 255


def quantize_mx(x: Tensor, *, dtype: torch.dtype, block: int = MX_BLOCK) -> tuple[Tensor, Tensor]:
    """Blocks of the last dimension: x (..., K) -> codes (..., K) of `dtype` (a float8), scale
    (..., ceil(K / block)) float8_e8m0fnu; the last block may be shorter."""
    if dtype not in EMAX:
        raise ValueError(f"MX elements are {' or '.join(map(str, EMAX))}, got {dtype}")
    length = x.shape[-1]
    n_blocks = groups(length, block)
    x = x.float()
    if length % block:
        x = torch.nn.functional.pad(x, (0, n_blocks * block - length))
    x_GB = x.unflatten(-1, (n_blocks, block))
    amax = x_GB.abs().amax(-1)
    # The exponent's bits are floor(log2) + 127 of a normal number; below, the result is clamped.
    exponent = (amax.view(torch.int32) >> 23) - EMAX[dtype]
    biased = torch.where(amax.isfinite(), exponent.clamp(0, 2 * _BIAS), _NAN)
    high = torch.finfo(dtype).max
    scale = _values(biased)[..., None]
    codes = (x_GB / scale).nan_to_num_(nan=torch.nan).clamp_(-high, high)  # NaN without a sign
    codes = codes.to(dtype).flatten(-2)[..., :length]
    return codes.contiguous(), biased.to(torch.uint8).view(torch.float8_e8m0fnu)


def dequantize_mx(
    codes: Tensor, scale: Tensor, *, block: int = MX_BLOCK, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The inverse; products are formed in float32, where they are exact, and rounded to `dtype`."""
    values = _values(scale.view(torch.uint8).to(torch.int32))
    length = codes.shape[-1]
    if length % block:
        spread = values.repeat_interleave(block, -1)[..., :length]
        return (codes.float() * spread).to(dtype)
    # bfloat16 has every code and every scale, and forms products in float32: nothing wider is kept
    wide = dtype if dtype == torch.bfloat16 else torch.float32
    blocks = codes.to(wide).unflatten(-1, (length // block, block))
    return blocks.mul_(values.to(wide)[..., None]).flatten(-2).to(dtype)


def _values(biased: Tensor) -> Tensor:
    """2**(biased - 127) as float32, of which 2**-127 is subnormal; NaN for 255."""
    bits = torch.where(biased == 0, 1 << 22, biased << 23)
    return torch.where(biased == _NAN, torch.nan, bits.to(torch.int32).view(torch.float32))
