"""Moments of Adam as codes: blocks of n consecutive elements share a scale.

    x ~ value[code] * scale          codes (B, n), scale (B) float32, B = ceil(numel / n)

docs/numerics.md ("State of optimizers") has the equation of every map, its error and its source.
The scale of the signed maps of 8 and 4 bits has the sign of the element of largest magnitude, since
they hold 1 but not -1. The last block is filled up with zeros. A moment is signed (exp_avg) or not
(exp_avg_sq); in an unsigned one what is above zero never becomes zero: its root is divided by.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core.numerics import choose_float8_scale, dequantize_float8, quantize_float8
from ao_core.packing import pack, packed_bytes, unpack

__all__ = [
    "FORMATS",
    "MomentFormat",
    "StateBits",
    "code_values",
    "dequantize_moment",
    "get_format",
    "quantize_moment",
]

StateBits = int | str  # 8, 4, "fp8", 32
TINY = torch.finfo(torch.float32).tiny
SMALLEST_FP8 = 2.0**-9  # the smallest positive e4m3


@dataclass(frozen=True, kw_only=True)
class MomentFormat:
    """How the moments of a parameter are stored.

    bits        as in `state_bits`
    storage     dtype of the codes
    code_bits   bits of one code; codes of 4 bits are packed by `ao_core.packing`, low half first
    block_size  elements that share a scale, if none is given
    """

    bits: StateBits
    storage: torch.dtype
    code_bits: int
    block_size: int

    def stored_width(self, block_size: int) -> int:
        """Elements of the storage dtype that the codes of one block take."""
        return packed_bytes(block_size, self.code_bits)


FORMATS: dict[StateBits, MomentFormat] = {
    row.bits: row
    for row in (
        MomentFormat(bits=8, storage=torch.uint8, code_bits=8, block_size=256),
        MomentFormat(bits=4, storage=torch.uint8, code_bits=4, block_size=128),
        MomentFormat(bits="fp8", storage=torch.float8_e4m3fn, code_bits=8, block_size=256),
    )
}


def get_format(bits: StateBits) -> MomentFormat:
    """The row of a quantized format; ValueError lists the known ones."""
    if isinstance(bits, bool) or bits not in FORMATS:
        raise ValueError(f"quantized moments have 8, 4 or 'fp8' bits, got {bits!r}")
    return FORMATS[bits]


@functools.cache
def _values(bits: StateBits, signed: bool) -> tuple[float, ...]:
    if bits == 4 and not signed:
        return tuple(((code + 1) / 16) ** 2 for code in range(16))
    assert bits in (4, 8)
    decades = 3 if bits == 4 else 7
    positive = [1.0]
    for decade in range(decades):
        steps = 2**decade if signed else 2 ** (decade + 1)
        power = 10.0 ** (decade - decades + 1)
        positive += [power * (0.1 + 0.9 * (k + 0.5) / steps) for k in range(steps)]
    negative = [-value for value in positive if value != 1.0] if signed else []
    return tuple(sorted([0.0, *positive, *negative]))


@functools.cache
def _tables(bits: StateBits, signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The value of each code, and the midpoints between neighbours."""
    values = torch.tensor(_values(bits, signed), dtype=torch.float64)
    midpoints = (values[1:] + values[:-1]) / 2
    return values.float().to(device), midpoints.float().to(device)


def code_values(bits: StateBits, *, signed: bool) -> Tensor:
    """The value of each code times its scale's inverse, float32: (256) or (16), ascending for 8 and
    4 bits; for "fp8" in the order of the codes' bytes, NaN at 127 and 255."""
    if get_format(bits).storage == torch.uint8:
        return torch.tensor(_values(bits, signed), dtype=torch.float32)
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def quantize_moment(
    x: Tensor, *, bits: StateBits, signed: bool, block_size: int
) -> tuple[Tensor, Tensor]:
    """Codes (B, n) in the format's storage (4 bits: (B, n/2) bytes) and scale (B) float32.

    x: any shape, read in row-major order. A block that holds NaN or inf gets a NaN scale.
    """
    row = get_format(bits)
    flat = x.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size))
    blocks = blocks.view(-1, block_size)
    if row.storage == torch.float8_e4m3fn:
        scale = choose_float8_scale(blocks, block=(1, block_size))
        if not signed:
            blocks = torch.where(blocks > 0, blocks.clamp(min=scale * SMALLEST_FP8), blocks)
        return quantize_float8(blocks, scale, block=(1, block_size)), scale.squeeze(1)
    low, high = blocks.aminmax(dim=1)
    extreme = torch.where(high >= -low, high.clamp(min=TINY), low.clamp(max=-TINY))
    scale = torch.where(extreme.isfinite(), extreme, torch.nan)
    _, midpoints = _tables(bits, signed, x.device)
    shares = torch.nan_to_num(blocks / scale[:, None], nan=0.0)
    codes = torch.bucketize(shares, midpoints, out_int32=True)
    if _values(bits, signed)[0] == 0:  # the zero of an unsigned map is for zeros alone
        codes = torch.maximum(codes, (shares > 0).int())
    return pack(codes.to(torch.uint8), row.code_bits), scale


def dequantize_moment(
    codes: Tensor, scale: Tensor, *, bits: StateBits, signed: bool, block_size: int
) -> Tensor:
    """The inverse of `quantize_moment`: (B, n) float32, with what filled up the last block."""
    row = get_format(bits)
    if row.storage == torch.float8_e4m3fn:
        return dequantize_float8(codes, scale[:, None], block=(1, block_size))
    values, _ = _tables(bits, signed, codes.device)
    return values[unpack(codes, row.code_bits, block_size).int()] * scale[:, None]
