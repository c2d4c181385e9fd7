"""Moments as codes in Triton: both directions of `ao_core.moments`, bit for bit.

Kernels are compiled without fused multiply-add but for those written as such. Tiles are (rows, n):
a row is a block of the state.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from ao_core.moments import DITHER_OF_ELEMENT, DITHER_OF_SIGNED, get_format
from ao_kernels.ops.moments import bits_of
from ao_kernels.triton import codes

_TINY = tl.constexpr(2.0**-126)
_INFINITY_BITS = tl.constexpr(0x7F800000)
_TWO_BITS = tl.constexpr(0x40000000)
_DITHER_OF_ELEMENT = tl.constexpr(DITHER_OF_ELEMENT)
_DITHER_OF_SIGNED = tl.constexpr(DITHER_OF_SIGNED)
_SMALLEST_FP8 = tl.constexpr(2.0**-9)


def constants(state_bits: str, device: torch.device) -> dict[str, Any]:
    """The constexprs that describe a format. BITS is 8, 4, 32, or 0 for float8."""
    native = codes.converts_float8(device)
    if state_bits == "32":
        none = (0, 0, 0.0, 0, 0, 1.0, 1.0)
        return {"BITS": 32, "SIGNED_MAP": none, "MAP": none, "NATIVE": native}
    row = get_format(bits_of(state_bits))
    found: dict[str, Any] = {"BITS": 0 if row.maps is None else row.code_bits}
    for name, signed in (("SIGNED_MAP", True), ("MAP", False)):
        each = None if row.maps is None else row.maps[signed]
        shape: tuple[float, ...] = (0, 0, 0.0, 0, 0)
        if each is not None:
            added = each.to_value, each.to_nearest
            shape = (each.segment_bits, each.cell_bits, each.bias, *added)
        inv_tops = (row.inv_top(signed, dithered=dithered) for dithered in (False, True))
        found[name] = (*shape, *inv_tops)
    return found | {"NATIVE": native}


@triton.jit
def values_of(code, MAP: tl.constexpr, SIGNED: tl.constexpr):
    """Codes (int32) -> values, exactly, to be multiplied with the scale."""
    SHIFT: tl.constexpr = 23 - MAP[1]
    WIDTH: tl.constexpr = MAP[0] + MAP[1]
    FIRST: tl.constexpr = 0x40000000 + MAP[3]  # bits of 2.0
    magnitude = code & ((1 << WIDTH) - 1)
    value = ((magnitude << SHIFT) + FIRST).to(tl.float32, bitcast=True) - MAP[2]
    if SIGNED:
        sign = (code >> WIDTH) << 31
        value = (value.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    return value


@triton.jit
def scales_of(x, INV_TOP: tl.constexpr):
    """Scales (R, 1), their inverses, and which bits codes may have: none where a row holds NaN or
    inf."""
    peak = tl.max(codes.magnitude(x), 1, keep_dims=True)
    scale = tl.maximum(peak.to(tl.float32, bitcast=True) * INV_TOP, _TINY)
    finite = peak < _INFINITY_BITS
    scale = tl.where(finite, scale, float("nan"))
    return scale, tl.div_rn(1.0, scale), tl.where(finite, 0xFF, 0)


@triton.jit
def codes_of(x, inv_scale, allowed, added, MAP: tl.constexpr, SIGNED: tl.constexpr):
    """Values -> codes (int32), which are cut off f and what is added to its bits."""
    SHIFT: tl.constexpr = 23 - MAP[1]
    WIDTH: tl.constexpr = MAP[0] + MAP[1]
    size = codes.magnitude(x).to(tl.float32, bitcast=True)
    bits = (size * inv_scale + MAP[2]).to(tl.int32, bitcast=True) + added
    if MAP[2] < 2.0:
        bits = tl.maximum(bits, _TWO_BITS)
    code = (bits >> SHIFT) & (allowed & ((1 << WIDTH) - 1))
    if SIGNED:
        sign = x.to(tl.int32, bitcast=True) >> (31 - WIDTH)
        code |= sign & (allowed & (1 << WIDTH))
    return code


@triton.jit
def float8_codes_of(x, inv_scale, allowed, SIGNED: tl.constexpr, NATIVE: tl.constexpr):
    """Values -> bytes of e4m3."""
    share = x * inv_scale
    if not SIGNED:
        share = tl.maximum(share, _SMALLEST_FP8)
    if NATIVE:
        code = codes._converted(share, 3)
    else:
        code = codes._rounded(share, 3, 7)
    return code & allowed.to(tl.uint8)


@triton.jit
def load(
    codes_pointer,
    scale_pointer,
    rows,
    mask,
    n: tl.constexpr,
    MAP: tl.constexpr,
    SIGNED: tl.constexpr,
    BITS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """The moments of the rows (R), of which those exist that mask (R) has."""
    rows, mask = rows[:, None], mask[:, None]
    scale = tl.load(scale_pointer + rows, mask=mask, other=0.0)
    width: tl.constexpr = n // 2 if BITS == 4 else n
    at = rows * width + tl.arange(0, width)[None, :]
    stored = tl.load(codes_pointer + at, mask=mask, other=0)
    if BITS == 0:
        value = codes.values_of(stored, 3, NATIVE, tl.float32)
    elif BITS == 4:
        both = stored.to(tl.int32)
        code = tl.join(both & 0xF, both >> 4).reshape(rows.shape[0], n)
        value = values_of(code, MAP, SIGNED)
    else:
        value = values_of(stored.to(tl.int32), MAP, SIGNED)
    return value * scale


@triton.jit
def save(
    codes_pointer,
    scale_pointer,
    rows,
    mask,
    x,
    n: tl.constexpr,
    MAP: tl.constexpr,
    SIGNED: tl.constexpr,
    BITS: tl.constexpr,
    NATIVE: tl.constexpr,
):
    """Stores moments (R, n), zero behind the parameter's end."""
    scale, inv_scale, allowed = scales_of(x, MAP[5])
    rows, mask = rows[:, None], mask[:, None]  # scales as (R, 1): as (R) they change their layout
    tl.store(scale_pointer + rows, scale, mask=mask)
    width: tl.constexpr = n // 2 if BITS == 4 else n
    at = rows * width + tl.arange(0, width)[None, :]
    if BITS == 0:
        stored = float8_codes_of(x, inv_scale, allowed, SIGNED, NATIVE)
    elif BITS == 4:
        code = codes_of(x, inv_scale, allowed, MAP[4], MAP, SIGNED)
        low, high = tl.split(code.reshape(rows.shape[0], n // 2, 2))
        stored = (low | (high << 4)).to(tl.uint8)
    else:
        stored = codes_of(x, inv_scale, allowed, MAP[4], MAP, SIGNED).to(tl.uint8)
    tl.store(codes_pointer + at, stored, mask=mask)


@triton.jit
def dither_words(index):
    """The words of elements: as far from that of the first as they are, in uint32."""
    return index.to(tl.uint32) * _DITHER_OF_ELEMENT


@triton.jit
def save_dithered(
    codes_pointer,
    scale_pointer,
    rows,
    mask,
    x,
    words,
    n: tl.constexpr,
    MAP: tl.constexpr,
    SIGNED: tl.constexpr,
):
    """`save` of moments of 4 bits (R, n), with the words (R, n) of unsigned ones' dithers."""
    scale, inv_scale, allowed = scales_of(x, MAP[6])
    rows, mask = rows[:, None], mask[:, None]
    tl.store(scale_pointer + rows, scale, mask=mask)
    if SIGNED:
        words *= _DITHER_OF_SIGNED
    dither = (words >> (9 + MAP[1])).to(tl.int32, bitcast=True)
    code = codes_of(x, inv_scale, allowed, dither, MAP, SIGNED)
    low, high = tl.split(code.reshape(rows.shape[0], n // 2, 2))
    at = rows * (n // 2) + tl.arange(0, n // 2)[None, :]
    tl.store(codes_pointer + at, (low | (high << 4)).to(tl.uint8), mask=mask)
