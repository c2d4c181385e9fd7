"""Moments of optimizers as codes: blocks of n consecutive elements share a scale.

    x ~ value[code] * scale          codes (B, n), scale (B) float32, B = ceil(numel / n)

The codes of 8 and 4 bits are companded: a code is some bits of a float32, so that both directions
are a product, a sum and a shift, with the same bits on every device.

    f = |x| * (1 / s) + d            the code: the E last bits of f's exponent, M first ones of its
    |x| ~ (f of the code - d) * s    mantissa

Each of 2**E segments is twice as wide as the one before and cut into 2**M cells; the first begins
at f = 2. Of 8 bits, the f of a code is the middle of its cell; of 4, the lower end, to which half a
cell is added before the code is cut off, and both roundings of a value are in one segment. With d
the f of the first code, that stands for zero: so it is in signed maps, whose code has the sign in
front of these bits. In unsigned ones d is less and no code is zero: their root is divided by. The
signed map of 8 bits is the mu-law decoder of ITU-T G.711.

With a dither instead of half a cell a value of 4 bits goes to the one below or above it, such that
the mean over all dithers is the value, from the smallest one on:

    dither of element i in step t, in [0, a cell): the upper bits of i * A + hash(t) mod 2**32; of a
        signed moment, of C times that

docs/numerics.md ("State of optimizers") has the errors. The last block is filled up with zeros. A
moment is signed (exp_avg) or not (exp_avg_sq).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core.packing import pack, packed_bytes, unpack
from ao_core.rounding import random_key

__all__ = [
    "FORMATS",
    "MomentFormat",
    "StateBits",
    "code_values",
    "dequantize_moment",
    "dither_starts",
    "get_format",
    "quantize_moment",
    "zero_moment",
]

StateBits = int | str  # 8, 4, "fp8", 32
TINY = torch.finfo(torch.float32).tiny
LARGEST_FP8, SMALLEST_FP8 = 448.0, 2.0**-9  # of positive e4m3 values
# A of the dither is the plastic number's share of 2**32: elements in a row are spread evenly
# (Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018). C was found by a
# search, so that they are in the other moment, and in both together.
DITHER_OF_ELEMENT, DITHER_OF_SIGNED = 0xC13FA9A9, 0xA30ED527
# What the scale of a block with a dither is larger: the largest f would lie a few units in the last
# place above the lower end of the last cell, and all of a cell but one unit comes on top.
DITHER_ROOM = 2.0**-21


@dataclass(frozen=True)
class Companding:
    """The map of a moment: bits of a segment, bits of a cell in it, and the summand d.

    `middles`: values are at the middles of cells, not at their lower ends. `top` is the largest
    value; the scale of a block is its largest magnitude over `top`.
    """

    segment_bits: int
    cell_bits: int
    bias: float
    middles: bool

    @property
    def top(self) -> float:
        last = 2 - 2.0 ** -(self.cell_bits + self.middles)
        return 2.0 ** (2**self.segment_bits) * last - self.bias

    @property
    def shift(self) -> int:
        """Bits of a float32 behind those of the code."""
        return 23 - self.cell_bits

    @property
    def to_value(self) -> int:
        """What the f of a code is above its cell's lower end, in bits of a float32."""
        return self.middles << (self.shift - 1)

    @property
    def to_nearest(self) -> int:
        """What is added before the code is cut off."""
        return (not self.middles) << (self.shift - 1)


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

    def inv_top(self, signed: bool, *, dithered: bool) -> float:
        """The scale of a block as a share of its largest magnitude, to be rounded to float32."""
        return (1 + DITHER_ROOM * dithered) / self.top(signed)


FORMATS: dict[StateBits, MomentFormat] = {
    row.bits: row
    for row in (
        MomentFormat(
            bits=8,
            storage=torch.uint8,
            code_bits=8,
            block_size=256,
            maps=(Companding(4, 4, 2.0, True), Companding(3, 4, 2.0625, True)),
        ),
        MomentFormat(
            bits=4,
            storage=torch.uint8,
            code_bits=4,
            block_size=128,
            maps=(Companding(2, 2, 1.9375, False), Companding(2, 1, 2.0, False)),
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
    bits_of_f = (magnitudes << each.shift) + (0x40000000 + each.to_value)
    values = bits_of_f.view(torch.float32) - each.bias
    return (torch.cat((values, -values)) if signed else values).to(device)


def code_values(bits: StateBits, *, signed: bool) -> Tensor:
    """The value of each code, float32: (256) or (16), in the order of the codes; for "fp8" in that
    of their bytes, NaN at 127 and 255."""
    return _values(bits, signed, torch.device("cpu")).clone()


def dither_starts(steps: Sequence[float], offsets: Sequence[int]) -> list[int]:
    """The words in [0, 2**32) that the dithers of parameters begin with: of each the step, counted
    from 1, and its first element's index in the whole parameter."""
    words = {step: random_key(seed=0, stream=0, step=int(step)) for step in set(steps)}
    return [
        (first * DITHER_OF_ELEMENT + words[step]) & 0xFFFFFFFF
        for step, first in zip(steps, offsets, strict=True)
    ]


def _dither(numel: int, start: int, bits: int, signed: bool, device: torch.device) -> Tensor:
    """(numel) int32 in [0, 2**bits)."""
    index = torch.arange(numel, dtype=torch.int64, device=device)
    word = (index * DITHER_OF_ELEMENT + start) & 0xFFFFFFFF
    if signed:
        word = (word * DITHER_OF_SIGNED) & 0xFFFFFFFF
    return (word >> (32 - bits)).int()


def quantize_moment(
    x: Tensor, *, bits: StateBits, signed: bool, block_size: int, dither: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (B, n) in the format's storage (4 bits: (B, n/2) bytes) and scale (B) float32.

    x: any shape, read in row-major order. A block that holds NaN or inf gets a NaN scale, and codes
    of zero bits.
    dither: a start from `dither_starts`, for moments of 4 bits (ValueError for others).
    Values then go to one of the two around them such that the mean over many steps is the value.
    None: to the nearest.
    """
    row = get_format(bits)
    if dither is not None and bits != 4:
        raise ValueError(f"moments of 4 bits have a dither, those of {bits!r} none")
    flat = x.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % block_size))
    blocks = blocks.view(-1, block_size)
    peak = blocks.abs().amax(dim=1)
    inv_top = row.inv_top(signed, dithered=dither is not None)
    scale = (peak * inv_top).clamp(min=TINY)
    scale = torch.where(peak.isfinite(), scale, torch.nan)
    inv_scale = scale.reciprocal()[:, None]
    if row.maps is None:
        shares = (blocks * inv_scale).clamp(-LARGEST_FP8 if signed else SMALLEST_FP8, LARGEST_FP8)
        codes = shares.nan_to_num(nan=0.0).to(row.storage)
        return codes, scale
    each = row.maps[signed]
    bits_of_f = (blocks.abs() * inv_scale + each.bias).view(torch.int32)
    if dither is None:
        bits_of_f += each.to_nearest
    else:
        by = _dither(blocks.numel(), dither, each.shift, signed, x.device)
        bits_of_f += by.view_as(bits_of_f)
    bits_of_f = bits_of_f.clamp(min=0x40000000)  # bits of 2.0
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
