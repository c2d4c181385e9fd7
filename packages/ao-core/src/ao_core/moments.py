"""Moments of optimizers as codes: blocks of n consecutive elements share a scale.

    x ~ value[code] * scale          codes (B, n), scale (B) float32, B = ceil(numel / n)

The codes of 8 and 4 bits are companded: a code is some bits of a float32, so that both directions
are a product, a sum and a shift, with the same bits on every device.

    f = |x| * (1 / s) + d            the code: the E last bits of f's exponent, M first ones of its
    |x| ~ (middle - d) * s           mantissa; middle: of the f that have this code

Each of 2**E segments is twice as wide as the one before and cut into 2**M cells; the first begins
at f = 2. With d = 2 + 2**-M, the middle of the first cell, that cell stands for zero: so it is in
signed maps, whose code has the sign in front of these bits. In unsigned ones d is less and no code
is zero: their root is divided by. The signed map of 8 bits is the mu-law decoder of ITU-T G.711.

docs/numerics.md ("State of optimizers") has the errors. The last block is filled up with zeros. A
moment is signed (exp_avg) or not (exp_avg_sq).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core.packing import pack, packed_bytes, unpack

__all__ = [
    "FORMATS",
    "MomentFormat",
    "StateBits",
    "code_values",
    "dequantize_moment",
    "get_format",
    "quantize_moment",
    "zero_moment",
]

StateBits = int | str  # 8, 4, "fp8", 32
TINY = torch.finfo(torch.float32).tiny
LARGEST_FP8, SMALLEST_FP8 = 448.0, 2.0**-9  # of positive e4m3 values


@dataclass(frozen=True)
class Companding:
    """The map of a moment: bits of a segment, bits of a cell in it, and the summand d.

    `top` is the largest value; the scale of a block is its largest magnitude over `top`.
    """

    segment_bits: int
    cell_bits: int
    bias: float

    @property
    def top(self) -> float:
        return 2.0 ** (2**self.segment_bits) * (2 - 2.0 ** -(self.cell_bits + 1)) - self.bias

    @property
    def shift(self) -> int:
        """Bits of a float32 behind those of the code."""
        return 23 - self.cell_bits


@dataclass(frozen=True, kw_only=True)
class MomentFormat:
    """How the moments of a parameter are stored.

    bits        as in `state_bits`
    storage     dtype of the codes
    code_bits   bits of one code; codes of 4 bits are packed by `ao_core.packing`, low half first
    block_size  elements that share a scale, if none is given
    maps        of unsigned and signed moments; None: they are e4m3
    """

    bits: StateBits
    storage: torch.dtype
    code_bits: int
    block_size: int
    maps: tuple[Companding, Companding] | None

    def stored_width(self, block_size: int) -> int:
        """Elements of the storage dtype that the codes of one block take."""
        return packed_bytes(block_size, self.code_bits)

    def top(self, signed: bool) -> float:
        """The largest value of a code."""
        return LARGEST_FP8 if self.maps is None else self.maps[signed].top


FORMATS: dict[StateBits, MomentFormat] = {
    row.bits: row
    for row in (
        MomentFormat(
            bits=8,
            storage=torch.uint8,
            code_bits=8,
            block_size=256,
            maps=(Companding(4, 4, 2.0), Companding(3, 4, 2.0625)),
        ),
        MomentFormat(
            bits=4,
            storage=torch.uint8,
            code_bits=4,
            block_size=128,
            maps=(Companding(2, 2, 2.1875), Companding(2, 1, 2.5)),
        ),
        MomentFormat(
            bits="fp8", storage=torch.float8_e4m3fn, code_bits=8, block_size=256, maps=None
        ),
    )
}


def get_format(bits: StateBits) -> MomentFormat:
    """The row of a quantized format; ValueError lists the known ones."""
    if isinstance(bits, bool) or bits not in FORMATS:
        raise ValueError(f"quantized moments have 8, 4 or 'fp8' bits, got {bits!r}")
    return FORMATS[bits]


@functools.cache
def _values(bits: StateBits, signed: bool, device: torch.device) -> Tensor:
    maps = get_format(bits).maps
    if maps is None:
        codes = torch.arange(256, dtype=torch.uint8, device=device)
        return codes.view(torch.float8_e4m3fn).float()
    each = maps[signed]
    magnitudes = torch.arange(2 ** (each.segment_bits + each.cell_bits), dtype=torch.int32)
    middles = (magnitudes << each.shift) + (1 << (each.shift - 1)) + 0x40000000
    values = middles.view(torch.float32) - each.bias
    return (torch.cat((values, -values)) if signed else values).to(device)


def code_values(bits: StateBits, *, signed: bool) -> Tensor:
    """The value of each code, float32: (256) or (16), in the order of the codes; for "fp8" in that
    of their bytes, NaN at 127 and 255."""
    return _values(bits, signed, torch.device("cpu")).clone()


def quantize_moment(
    x: Tensor, *, bits: StateBits, signed: bool, block_size: int
) -> tuple[Tensor, Tensor]:
    """Codes (B, n) in the format's storage (4 bits: (B, n/2) bytes) and scale (B) float32.

    x: any shape, read in row-major order. A block that holds NaN or inf gets a NaN scale, and codes
    of zero bits.
    """
    row = get_format(bits)
    flat = x.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size))
    blocks = blocks.view(-1, block_size)
    peak = blocks.abs().amax(dim=1)
    scale = (peak * (1 / row.top(signed))).clamp(min=TINY)
    scale = torch.where(peak.isfinite(), scale, torch.nan)
    inv_scale = scale.reciprocal()[:, None]
    if row.maps is None:
        shares = (blocks * inv_scale).clamp(-LARGEST_FP8 if signed else SMALLEST_FP8, LARGEST_FP8)
        codes = shares.nan_to_num(nan=0.0).to(row.storage)
        return codes, scale
    each = row.maps[signed]
    bits_of_f = (blocks.abs() * inv_scale + each.bias).view(torch.int32)
    codes = (bits_of_f >> each.shift) & (2 ** (each.segment_bits + each.cell_bits) - 1)
    if signed:
        codes |= (blocks.view(torch.int32) < 0).int() << (row.code_bits - 1)
    codes = torch.where(scale.isnan()[:, None], 0, codes)
    return pack(codes.to(torch.uint8), row.code_bits), scale


def zero_moment(
    numel: int, *, bits: StateBits, signed: bool, block_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What `quantize_moment` gives for zeros, without them."""
    row = get_format(bits)
    blocks = -(-numel // block_size)
    # The smallest positive e4m3 is the byte 1; in other maps the smallest code is 0.
    smallest = 1 if row.maps is None and not signed else 0
    shape = (blocks, row.stored_width(block_size))
    codes = torch.full(shape, smallest, dtype=torch.uint8, device=device)
    return codes.view(row.storage), torch.full((blocks,), TINY, device=device)


def dequantize_moment(
    codes: Tensor, scale: Tensor, *, bits: StateBits, signed: bool, block_size: int
) -> Tensor:
    """The inverse of `quantize_moment`: (B, n) float32, with what filled up the last block."""
    row = get_format(bits)
    if row.maps is None:
        return codes.float() * scale[:, None]
    values = _values(bits, signed, codes.device)
    return values[unpack(codes, row.code_bits, block_size).int()] * scale[:, None]
