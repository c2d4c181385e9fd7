"""Values to codes: what the kernels that quantize are made of.

    float8  s = max(amax|x| / max8, FLT_MIN);  code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, FLT_MIN);   code = clamp(round_half_even(x * (1/s)), -127, 127)

in float32, bit for bit what ``ao_core.numerics.quantize_blocks`` gives on a CPU: divisions are IEEE
divisions (Triton's ``/`` is not), and a product is rounded before it is used, so kernels are
compiled without fused multiply-add but for those written as such. Codes of float8 are written as
bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from ao_kernels.triton import tiles

_FLT_MIN = tl.constexpr(2.0**-126)
_INFINITY_BITS = tl.constexpr(0x7F800000)
# Adding it drops the fraction, half to even, of |value| < 2**22, and leaves the integer's low byte.
_ROUNDING = tl.constexpr(1.5 * 2.0**23)
_SMALL = tl.constexpr(2.0**-64)
_LIFT = tl.constexpr(2.0**64)
_LIFT_BITS = tl.constexpr(0x5F800000)  # of 2**64
_LOWER_BITS = tl.constexpr(0x1F800000)  # of 2**-64
_BOUND = tl.constexpr(2.0**16)  # above the largest code of every dtype


class Kind(NamedTuple):
    """A dtype of codes as kernels take it: bits of its mantissa (0: int8), bias of its exponent."""

    high: float
    mantissa: int
    bias: int


KINDS = {
    torch.int8: Kind(127.0, 0, 0),
    torch.float8_e4m3fn: Kind(448.0, 3, 7),
    torch.float8_e5m2: Kind(57344.0, 2, 15),
}


def constants(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The constexprs that :func:`scale_of` and :func:`codes_of` need."""
    kind = KINDS[dtype]
    return {
        "HIGH": kind.high,
        "MANTISSA": kind.mantissa,
        "BIAS": kind.bias,
        "FUSED": not tiles.INTERPRETED,
        "NATIVE": converts_float8(device),
    }


@functools.cache
def converts_float8(device: torch.device) -> bool:
    """Whether the device has instructions that round float32 to float8 (from sm_89 on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def widened(x):
    """The values as float32. From bfloat16 by hand: the interpreter misreads its subnormals."""
    if x.dtype == tl.bfloat16:
        upper = x.to(tl.int16, bitcast=True).to(tl.int32)
        return (upper << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def magnitude(value):
    """Bits of |value|: they order like the magnitudes, with inf and then NaN above all others."""
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def is_finite(value):
    """False for NaN and inf."""
    return magnitude(value) < _INFINITY_BITS


@triton.jit
def scale_of(peak, HIGH: tl.constexpr, POWER: tl.constexpr = False, FUSED: tl.constexpr = False):
    """The scale of values whose largest :func:`magnitude` is ``peak``; NaN if one is not finite.

    POWER: rounded up to a power of two. FUSED: without a division, which takes ten times as long;
    the corrected product is the rounded quotient, for every mantissa (test_scales_by_products).
    """
    size = peak.to(tl.float32, bitcast=True)
    if FUSED:
        share = tl.full(size.shape, HIGH, tl.float32)
        part = tl.full(size.shape, 1.0 / HIGH, tl.float32)
        step = size * part
        step = tl.fma(tl.fma(step, -share, size), part, step)
    else:
        step = tl.div_rn(size, HIGH)
    step = tl.maximum(step, _FLT_MIN)
    if POWER:
        bits = (step.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
        step = bits.to(tl.float32, bitcast=True)
    return tl.where(peak < _INFINITY_BITS, step, float("nan"))


@triton.jit
def codes_of(
    value,
    step,
    GIVEN: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    SHORT: tl.constexpr = False,
    inverse=None,
    POWER: tl.constexpr = False,
):
    """Codes of values by their scale, of a shape that broadcasts.

    GIVEN: any scale; else that of the largest value, so that no quotient passes the largest code by
    more than its rounding. SHORT: values are of 16 bits, bfloat16 or float16. inverse:
    :func:`inverse_of` the step, where it is known. POWER: as of :func:`scale_of`, of a scale that
    is not given; then float8 codes need the inverse alone, and ``step`` is not read beside it.
    """
    if MANTISSA == 0:
        codes = _int8_codes(value, step, GIVEN, inverse)
    else:
        if GIVEN and FUSED:
            quotient = _any_quotient(value, step, SHORT)
        elif POWER and not GIVEN:
            quotient = _power_quotient(value, step, inverse)
        else:
            quotient = _quotient(value, step, FUSED and not GIVEN, SHORT, inverse)
        codes = float8_codes(quotient, MANTISSA, BIAS, NATIVE)
    return codes


@triton.jit
def finite(value, FUSED: tl.constexpr):
    """The values, but NaN for inf."""
    if FUSED:  # one instruction, not three
        found = tl.fma(value, tl.zeros_like(value), value)
    else:
        found = tl.where(is_finite(value), value, float("nan"))
    return found


@triton.jit
def float8_codes(value, MANTISSA: tl.constexpr, BIAS: tl.constexpr, NATIVE: tl.constexpr):
    """The nearest float8 of values, as bytes."""
    if NATIVE:
        codes = _converted(value, MANTISSA)
    else:
        codes = _rounded(value, MANTISSA, BIAS)
    return codes


@triton.jit
def _int8_codes(value, step, GIVEN: tl.constexpr, inverse):
    if inverse is None:
        inverse = inverse_of(step, 0)
    product = value * inverse
    if GIVEN:
        product = tl.where(product == product, product, 0.0)
        product = tl.minimum(tl.maximum(product, -127.0), 127.0)
    else:
        product = tl.where(step == step, product, 0.0)
    return (product + _ROUNDING).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _lift(step):
    return tl.where(step < _SMALL, _LIFT, 1.0)


@triton.jit
def inverse_of(
    step, MANTISSA: tl.constexpr, POWER: tl.constexpr = False, FUSED: tl.constexpr = False
):
    """1 / step as :func:`codes_of` uses it: for float8, small steps are lifted unless they are
    powers of two."""
    if MANTISSA == 0:
        inverse = tl.div_rn(1.0, step)
    elif POWER:
        inverse = _inverse_power(step)
    else:
        inverse = _reciprocal_of_many(step * _lift(step), FUSED)
    return inverse


@triton.jit
def _reciprocal_of_many(x, FUSED: tl.constexpr):
    """As :func:`_reciprocal`, of NaN or magnitudes between 2**-125 and 2**125.

    FUSED: what ptxas makes of the instruction where no check for other numbers and no branch to a
    subroutine are needed: with these, a thread's rows are worked off one after the other.
    """
    if FUSED:
        found = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
        one = tl.full(x.shape, 1.0, tl.float32)
        found = tl.fma(found, -tl.fma(x, found, -one), found)
    else:
        found = tl.div_rn(1.0, x)
    return found


@triton.jit
def _reciprocal(x, FUSED: tl.constexpr):
    """1 / x, rounded; x is 0, inf, NaN, or of a magnitude from 2**-126 to 2**126.

    FUSED: by the instruction for it, which may flush what is subnormal: nothing here is. The block
    of code that the library's function ends keeps ptxas from widening x before the reciprocal is
    there: 56 registers in the tiles of a tensor's scale, 96 with the instruction alone, 128 with a
    division (triton 3.6, sm_90).
    """
    if FUSED:
        found = libdevice.rcp_rn(x)
    else:
        found = tl.div_rn(1.0, x)
    return found


@triton.jit
def _inverse_power(step):
    """1 / step, exactly, of powers of two up to 2**126; NaN of NaN."""
    bits = 0x7F000000 - step.to(tl.int32, bitcast=True)
    return tl.where(step == step, bits.to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def _power_quotient(value, step, inverse):
    """value / step of a power of two: a product with its inverse is rounded as the quotient is."""
    if inverse is None:
        inverse = _inverse_power(step)
    return value * inverse


@triton.jit
def _bounded(quotient):
    """Of larger quotients any number beyond the largest code; of NaN, too."""
    return tl.minimum(tl.maximum(quotient, -_BOUND), _BOUND)


@triton.jit
def _any_quotient(value, step, SHORT: tl.constexpr):
    """value / step of any one number, as :func:`_quotient` gives it where that decides a code;
    saturated beyond.

    An IEEE division takes 24 instructions an element, of which one runs at an eighth of the rate.
    Here all that is odd is settled once, with the step: small ones are lifted and large ones
    lowered, with their sign, so that neither the reciprocal nor a remainder leaves the normal
    numbers; of inf the divisor is made 0, which gives quotients of 0. Quotients are bounded in
    front of each correction, where inf times 0 would be NaN. NaN comes back with the remainder.
    """
    bits = step.to(tl.int32, bitcast=True)
    size = (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    lift = tl.where(size < _SMALL, _LIFT_BITS, 0x3F800000)
    lift = tl.where(size > _LIFT, _LOWER_BITS, lift)
    divisor = size * lift.to(tl.float32, bitcast=True)
    inverse = _reciprocal(size * (lift | -0x80000000).to(tl.float32, bitcast=True), True)
    opposite = lift | ((bits ^ -0x80000000) & -0x80000000)
    value = value * opposite.to(tl.float32, bitcast=True)  # minus the value, as in _quotient
    divisor = tl.where(inverse == 0, 0.0, divisor)
    divisor, value = tl.broadcast(divisor, value)
    inverse, value = tl.broadcast(inverse, value)
    quotient = _bounded(value * inverse)
    quotient = tl.fma(tl.fma(quotient, divisor, value), inverse, quotient)
    if not SHORT:
        quotient = _bounded(quotient)
        quotient = tl.fma(tl.fma(quotient, divisor, value), inverse, quotient)
    return quotient


@triton.jit
def _quotient(value, step, FUSED: tl.constexpr, SHORT: tl.constexpr, inverse):
    """value / step, rounded once.

    FUSED: for a step of at least FLT_MIN and quotients below 2**17, by two corrections of the
    product with the rounded reciprocal (Markstein). The second starts from a neighbour of the
    quotient or the quotient itself, which makes its remainder exact and its result the rounded
    quotient. Smaller steps are lifted, so that no remainder underflows that could matter to a
    code. The signs are such that -0 stays -0; the value and the reciprocal are negated with
    their lift, since Triton 3.6 makes a subtraction of -value.

    SHORT: one correction. Its result may be a neighbour of the rounded quotient, but where that
    matters, within a few units of a midpoint of codes, values of up to 11 bits were enumerated:
    codes are the same (test_short_quotients).
    """
    if FUSED:
        lift = _lift(step)
        divisor = step * lift
        if inverse is None:
            inverse = _reciprocal(divisor, FUSED)
        inverse = -inverse
        value = value * -lift
        divisor, value = tl.broadcast(divisor, value)
        inverse, value = tl.broadcast(inverse, value)
        quotient = value * inverse
        quotient = tl.fma(tl.fma(quotient, divisor, value), inverse, quotient)
        if not SHORT:
            quotient = tl.fma(tl.fma(quotient, divisor, value), inverse, quotient)
    else:
        step, value = tl.broadcast(step, value)
        quotient = tl.div_rn(value, step)
    return quotient


@triton.jit
def _converted(value, MANTISSA: tl.constexpr):
    """float8 codes by the instruction: to nearest, halves to even, saturated, NaN without sign."""
    if MANTISSA == 3:
        codes = value.to(tl.float8e4nv)
    else:
        codes = value.to(tl.float8e5)
    return codes.to(tl.uint8, bitcast=True)


@triton.jit
def _rounded(value, MANTISSA: tl.constexpr, BIAS: tl.constexpr):
    """The same with integers, for devices without it."""
    DROPPED: tl.constexpr = 23 - MANTISSA
    LEAST: tl.constexpr = (128 - BIAS) << 23  # bits of the smallest normal code's value
    HIGHEST: tl.constexpr = 0x43E00000 if MANTISSA == 3 else 0x47600000  # bits of 448 or 57344
    UNIT: tl.constexpr = (151 - BIAS - MANTISSA) << 23  # of a float whose last bit is a subnormal's
    size = magnitude(value)
    sign = (value.to(tl.int32, bitcast=True) >> 24) & 0x80
    bounded = tl.minimum(size, HIGHEST)
    odd = (bounded >> DROPPED) & 1
    normal = (bounded + ((1 << (DROPPED - 1)) - 1) + odd) >> DROPPED
    normal -= (127 - BIAS) << MANTISSA
    unit = tl.full(value.shape, UNIT, tl.int32).to(tl.float32, bitcast=True)
    small = (bounded.to(tl.float32, bitcast=True) + unit).to(tl.int32, bitcast=True) - UNIT
    code = tl.where(bounded < LEAST, small, normal) | sign
    return tl.where(size > _INFINITY_BITS, 0x7F, code).to(tl.uint8)


@triton.jit
def values_of(codes, MANTISSA: tl.constexpr, NATIVE: tl.constexpr, OPERAND: tl.constexpr):
    """The values of float8 codes (bytes), exactly: float16, bfloat16 and float32 hold them all.

    e5m2 is the upper byte of a float16: Triton's own conversion makes numbers of its inf (3.6).
    """
    if NATIVE and MANTISSA == 3:
        values = float8_of(codes, MANTISSA)
    elif MANTISSA == 3:
        # The bits of a float16 of 2**-8 times the value.
        code = codes.to(tl.int16)
        bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
        values = bits.to(tl.int16).to(tl.float16, bitcast=True) * 256.0
        values = tl.where((code & 0x7F) == 0x7F, float("nan"), values)
    else:
        values = (codes.to(tl.int16) << 8).to(tl.int16).to(tl.float16, bitcast=True)
    return values.to(OPERAND)


@triton.jit
def float8_of(codes, MANTISSA: tl.constexpr):
    """Bytes as the float8 that they are."""
    if MANTISSA == 3:
        values = codes.to(tl.float8e4nv, bitcast=True)
    else:
        values = codes.to(tl.float8e5, bitcast=True)
    return values


@triton.jit
def integers_of(codes, BITS: tl.constexpr, OPERAND: tl.constexpr):
    """Unsigned codes less 2**(BITS - 1), exactly: a code becomes the last bits of 128 or 1024,
    which goes off with the middle.

    Conversions from int8 take twice the instructions: 666 against 346 of PRMT, LOP3 and SHF in a
    128 x 128 tile of 4 bits (triton 3.6, sm_90).
    """
    MIDDLE: tl.constexpr = 1 << (BITS - 1)
    if tl.bfloat16 == OPERAND and BITS < 8:
        value = (codes.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - (128.0 + MIDDLE)
    elif tl.float16 == OPERAND:
        value = (codes.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + MIDDLE)
    else:
        value = codes.to(tl.float32) - MIDDLE
    return value.to(OPERAND)
