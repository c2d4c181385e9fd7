"""Numerics: scales, codes and back, in plain torch. docs/numerics.md states each as an equation.

Integers: groups of `group_size` consecutive elements of the last dimension share a scale (and a
zero); the last group may be shorter. Shapes: w (..., K), scale and zero (..., G) with
G = ceil(K / group_size).

    int8   codes in [-127, 127], int8           w ~ code * scale
    intx   codes in [0, 2**b - 1], uint8        w ~ (code - zero) * scale; zero is 2**(b-1) if None

This file is long because docs/numerics.md and every kernel refer to it as one: integers,
activations and float8 share their rounding, their smallest scale and what becomes of NaN.

Float8: blocks of any shape share a scale; w ~ code * scale. `quantize_blocks` does the same to
activations, to float8 or int8.

`scale` always means: multiply by it to get the real value back. Defined everywhere: a group of
zeros gets a finite scale and codes that mean 0; scales never fall below the smallest normal float32
(so subnormal groups become zeros of the same sign class); a group that holds NaN or inf gets a NaN
scale and comes back as NaN.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .formats import get_format

__all__ = [
    "MAPPINGS",
    "choose_float8_scale",
    "choose_intx_qparams",
    "choose_int8_scale",
    "dequantize_float8",
    "dequantize_int8",
    "dequantize_intx",
    "groups",
    "next_power_of_two",
    "optimize_intx_qparams",
    "quantize_blocks",
    "quantize_float8",
    "quantize_float8_tokens",
    "quantize_int8",
    "quantize_intx",
    "quantize_tokens",
]

TINY = torch.finfo(torch.float32).tiny  # smallest normal: 1/TINY is finite
MAPPINGS = ("symmetric", "asymmetric")
# elements converted at a time: 4 MB of float32 stay in a CPU's cache instead of crossing DRAM each
# pass; on a GPU, 64 MB keep it busy for longer than launching a kernel takes
CHUNK = 1 << 20
DEVICE_CHUNK = 1 << 24


def groups(length: int, group_size: int) -> int:
    """How many groups a row of `length` elements has."""
    return -(-length // max(group_size, 1))  # of an empty weight, a row is a group of 0


# --- int8, symmetric


def choose_int8_scale(w: Tensor, *, group_size: int) -> Tensor:
    """(..., K) -> scale (..., G) float32 = amax / 127, so that codes reach 127 exactly."""
    return _per_group(lambda x: _floor(_divided(x.abs().amax(-1), 127)), w, group_size)


def quantize_int8(w: Tensor, scale: Tensor, *, group_size: int) -> Tensor:
    """(..., K), (..., G) -> codes (..., K) int8 in [-127, 127]; round half to even."""
    codes = _by_group(
        w,
        group_size,
        scale,
        lambda x, s: torch.nan_to_num(x / s, nan=0.0).round_().clamp_(-127, 127),
    )
    return codes.to(torch.int8)


def dequantize_int8(
    codes: Tensor, scale: Tensor, *, group_size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(..., K) int8, (..., G) -> (..., K) `dtype`; the product is formed in float32."""
    return _by_group(codes, group_size, scale, lambda c, s: c * s).to(dtype)


# --- intx, 1 to 8 bits


def choose_intx_qparams(
    w: Tensor,
    *,
    bits: int,
    group_size: int,
    mapping: str = "symmetric",
    scale_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero from each group's extremes ("minmax").

    w (..., K) -> scale (..., G), zero (..., G) or None; both `scale_dtype` (default: the format's).

    symmetric   the element of largest magnitude takes the end of the range that has one code more,
                -2**(b-1); the scale carries its sign. No zero is stored. One bit has two values,
                -a and +a with a the mean magnitude: zero = 1/2.
    asymmetric  the range [min(w, 0), max(w, 0)] is divided into 2**b - 1 steps; zero is an integer,
                so 0 is exact.
    """
    scale_dtype = _scale_dtype(bits, scale_dtype)
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping is one of {', '.join(MAPPINGS)}; got {mapping!r}")
    if mapping == "asymmetric":
        pair = _per_group(lambda x: _asymmetric(x, 2**bits - 1, scale_dtype), w, group_size)
        return pair.select(-1, 0).to(scale_dtype), pair.select(-1, 1).to(scale_dtype)
    if bits == 1:
        scale = _stored(_per_group(_two_means, w, group_size), scale_dtype)
        return scale, torch.full_like(scale, 0.5)
    scale = _per_group(lambda x: _signed_scale(x, 2 ** (bits - 1)), w, group_size)
    return _stored(scale, scale_dtype), None


def quantize_intx(
    w: Tensor, scale: Tensor, zero: Tensor | None, *, bits: int, group_size: int
) -> Tensor:
    """(..., K), (..., G), (..., G) or None -> codes (..., K) uint8 in [0, 2**bits - 1], not packed.

    code = clamp(round_half_even(w / scale + zero)); a NaN group gets the midpoint code.
    """
    row = _intx_format(bits)
    top, midpoint = row.high, float(row.midpoint)

    def codes(x: Tensor, s: Tensor, z: Tensor | float) -> Tensor:
        return torch.nan_to_num((x / s).add_(z), nan=midpoint).round_().clamp_(0, top)

    if zero is None:
        return _by_group(w, group_size, scale, lambda x, s: codes(x, s, midpoint)).to(torch.uint8)
    return _by_group(w, group_size, scale, codes, zero).to(torch.uint8)


def dequantize_intx(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    bits: int,
    group_size: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(..., K) uint8, (..., G), (..., G) or None -> (..., K) `dtype`.

    w = (code - zero) * scale, formed in float32.
    """
    if zero is None:
        midpoint = float(_intx_format(bits).midpoint)
        return _by_group(codes, group_size, scale, lambda c, s: (c - midpoint) * s).to(dtype)
    return _by_group(codes, group_size, scale, lambda c, s, z: (c - z) * s, zero).to(dtype)


STARTS = (0.97, 0.9, 0.83, 0.77, 0.7)  # shares of the group's range from which the search starts
ROUNDS = 2  # alternating rounds a start
# reference LM (27.8 M parameters, 128 a group), perplexity gcide / pydoc, float 8.334 / 11.784:
#   4 bits: 5 starts x 2 rounds 8.446 / 12.046, 24 x 3 8.460 / 12.008, minmax 8.574 / 12.130
#   3 bits: 5 starts x 2 rounds 8.980 / 13.104, 6 x 3 9.005 / 13.167, 8 x 6 8.990 / 13.036


def optimize_intx_qparams(
    w: Tensor, *, bits: int, group_size: int, scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and fractional zero that make a group's error small ("hqq").

        error = sum |w - (code - zero) * scale|**2.5

    The half-quadratic idea of HQQ (Badri and Shaji, 2023): fix the codes and solve for the affine
    parameters in closed form, fix those and round again. Here scale and zero are both solved for,
    by least squares; the search starts from several shrunken ranges, and each group keeps the best
    pair that it has met. No data is needed. w (..., K) -> scale (..., G), zero (..., G), both
    `scale_dtype`; errors are judged after rounding to it.
    """
    scale_dtype = _scale_dtype(bits, scale_dtype)
    pair = _per_group(lambda x: _search(x, 2**bits - 1, scale_dtype), w, group_size)
    return pair.select(-1, 0).to(scale_dtype), pair.select(-1, 1).to(scale_dtype)


def _search(x: Tensor, top: int, scale_dtype: torch.dtype) -> Tensor:
    """(R, g) float32 -> (R, 2): scale, zero."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    best = _asymmetric(x, top, scale_dtype)
    best_error = _error(x, _codes(x, best[:, :1], best[:, 1:], top), best[:, :1], best[:, 1:])
    for share in STARTS:
        scale = ((high - low) * (share / top)).clamp_(min=TINY)
        zero = top / 2 - (high + low) / 2 / scale
        for _ in range(ROUNDS + 1):
            scale, zero = scale.to(scale_dtype).float(), zero.to(scale_dtype).float()
            codes = _codes(x, scale, zero, top)
            error = _error(x, codes, scale, zero)
            best = torch.where(error < best_error, torch.cat((scale, zero), -1), best)
            best_error = torch.minimum(error, best_error)
            code_mean = codes.mean(-1, keepdim=True)
            codes -= code_mean
            scale = (codes * centred).sum(-1, keepdim=True) / (codes * codes).sum(
                -1, keepdim=True
            ).clamp_(min=1e-9)
            scale = torch.where(scale.abs() < TINY, TINY, scale)
            zero = code_mean - mean / scale
    return best


def _codes(x: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return torch.addcmul(zero, x, 1 / scale).round_().clamp_(0, top)


def _error(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    error = (codes - zero).mul_(scale).sub_(x).abs_()
    return (error * error).mul_(error.sqrt()).sum(-1, keepdim=True)


def _two_means(x: Tensor) -> Tensor:
    """Twice the mean magnitude; 0 for a group of zeros, which one bit could not express
    otherwise."""
    mean = x.abs().mean(-1)
    return torch.where(mean == 0, 0, _floor(2 * mean))


def _signed_scale(x: Tensor, half: int) -> Tensor:
    low, high = x.amin(-1), x.amax(-1)
    magnitude = _floor(_divided(torch.maximum(high, -low), half))
    return torch.where(high > -low, -magnitude, magnitude)


def _asymmetric(x: Tensor, top: int, scale_dtype: torch.dtype) -> Tensor:
    """(R, g) -> (R, 2): scale rounded to its dtype, and the integer zero that belongs to the
    rounded scale."""
    low, high = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
    scale = _stored(_floor(_divided(high, top) - _divided(low, top)), scale_dtype).float()
    zero = (-low / scale).round_().clamp_(0, top)
    return torch.stack((scale, zero), -1)


def _divided(x: Tensor, divisor: float) -> Tensor:
    """x / divisor, rounded once on every device: CUDA multiplies by the reciprocal of a Python
    number (torch 2.11 on an H200: 183 of 4096 token scales differed from the CPU's by one bit)."""
    return x / torch.full_like(x, divisor)


def _floor(scale: Tensor) -> Tensor:
    """At least TINY; NaN for inf and NaN."""
    return torch.where(scale.isfinite(), scale.clamp(min=TINY), torch.nan)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As it will be stored: rounded to its dtype, and NaN where it does not fit there."""
    scale = scale.to(dtype)
    return torch.where(scale.isfinite(), scale, torch.nan)


def _scale_dtype(bits: int, dtype: torch.dtype | None) -> torch.dtype:
    dtype = dtype or _intx_format(bits).scale
    if dtype not in (torch.bfloat16, torch.float32):  # others cannot hold the smallest scale
        raise ValueError(f"scales are torch.bfloat16 or torch.float32, got {dtype}")
    return dtype


def _intx_format(bits: int):
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"integer codes have 1 to 8 bits, got {bits!r}")
    return get_format("intx8" if bits == 8 else f"int{bits}")


# --- activations to int8


def quantize_tokens(
    x_MK: Tensor, *, mapping: str = "symmetric", scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize each token of an activation to int8, as the int8_dynamic and int8_static ops do.

    x (M, K) -> codes (M, K) int8, scale (M, 1) float32, zero (M, 1) float32 or None, with
    x ~ (codes - zero) * scale.

    symmetric   scale = amax / 127, codes in [-127, 127]
    asymmetric  the range [min(x, 0), max(x, 0)] in 255 steps, codes in [-128, 127]; zero is an
                integer

    With a `scale` of one element, which mapping "symmetric" takes, all tokens have this scale, and
    codes beyond the range take its end.
    A token that holds NaN or inf gets a NaN scale and zero codes. All arithmetic is float32; x is
    multiplied by the rounded reciprocal of the scale, which is what makes codes equal on every
    device.
    """
    x = x_MK.float()
    if mapping == "symmetric":
        if scale is not None:
            finite = x.isfinite().all(-1, keepdim=True)
            scale = torch.where(finite, scale.float().reshape(1, 1), torch.nan)
        codes, scale = quantize_blocks(x, block=(1, x.shape[1]), dtype=torch.int8, scale=scale)
        return codes, scale, None
    if mapping != "asymmetric":
        raise ValueError(f"mapping is one of {', '.join(MAPPINGS)}; got {mapping!r}")
    if scale is not None:
        raise ValueError("a given scale goes with mapping='symmetric'")
    if not x.shape[-1]:
        return x.to(torch.int8), x.new_full((len(x), 1), TINY), x.new_full((len(x), 1), -128.0)
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    span = high - low
    scale = _floor(
        torch.where(span.isinf(), _divided(high, 255) - _divided(low, 255), _divided(span, 255))
    )
    inverse = 1 / scale
    zero = torch.nan_to_num((-128 - low * inverse).round(), nan=0.0).clamp(-128, 127)
    codes = torch.nan_to_num((x * inverse).round() + zero, nan=0.0).clamp(-128, 127)
    return codes.to(torch.int8), scale, zero


def quantize_blocks(
    x: Tensor,
    *,
    block: tuple[int, ...],
    dtype: torch.dtype,
    scale: Tensor | None = None,
    power_of_two: bool = False,
) -> tuple[Tensor, Tensor]:
    """Quantize blocks of an activation, as the quantize ops do: x (...) -> codes (...) of `dtype`
    (int8 or a float8), scale float32 with one element a block (same rank as x); x ~ codes * scale.

    block   its shape; a block as long as an empty dimension has a scale, the smallest there is
    scale   given: codes of this scale, saturated; None: that of each block's largest magnitude,
            with `power_of_two` rounded up (:func:`next_power_of_two`)
    int8    codes in [-127, 127]; x is multiplied by the rounded reciprocal of the scale
    float8  x is divided by the scale
    A block that holds NaN or inf gets a NaN scale, and NaN codes, or zero codes of int8.
    """
    x = x.float()
    if scale is None:
        scale = _block_scale(x, block, dtype)
        scale = next_power_of_two(scale) if power_of_two else scale
    if dtype != torch.int8:
        return quantize_float8(x, scale, block=block, dtype=dtype), scale
    codes = (x * (1 / _spread(scale, block, x.shape))).round_()
    return torch.nan_to_num_(codes, nan=0.0).clamp_(-127, 127).to(dtype), scale


def next_power_of_two(scale: Tensor) -> Tensor:
    """Positive normal float32 scales, rounded up to powers of two; powers and NaN stay.

    2**ceil(log2(scale)), by the bits: exact, where a logarithm is not.
    """
    up = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(scale.isfinite(), up, scale)


# --- float8


def choose_float8_scale(
    w: Tensor, *, block: tuple[int, ...], dtype: torch.dtype = torch.float8_e4m3fn
) -> Tensor:
    """Scale of each block = amax / the largest float8 value; float32, one element a block (same
    rank as w)."""
    return _block_scale(w.float(), block, dtype)


def quantize_float8(
    w: Tensor, scale: Tensor, *, block: tuple[int, ...], dtype: torch.dtype = torch.float8_e4m3fn
) -> Tensor:
    """(...), scale of its blocks -> codes of `dtype`, saturated at the largest finite value; NaN
    becomes the NaN without a sign."""
    high = torch.finfo(dtype).max
    codes = w.float() / _spread(scale, block, w.shape)
    return torch.nan_to_num_(codes, nan=torch.nan).clamp_(-high, high).to(dtype)


def dequantize_float8(
    codes: Tensor, scale: Tensor, *, block: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The inverse of `quantize_float8`; the product is formed in float32."""
    return (codes.float() * _spread(scale, block, codes.shape)).to(dtype)


def quantize_float8_tokens(
    x_MK: Tensor, *, block: tuple[int, int], scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantize activations to float8 e4m3, as the float8 ops do.

    x (M, K) -> codes (M, K) float8_e4m3fn, scale (ceil(M / block[0]), ceil(K / block[1])) float32;
    x ~ codes * scale. Blocks: (M, K) one scale, (1, K) one a token, (1, n) one for n input
    features of a token. A given `scale`, of the shape that the block has, is taken as it is.

    :func:`quantize_blocks`, except that inf becomes NaN where the scale is given, too.
    """
    x = x_MK.float()
    if scale is not None:
        x = torch.where(x.isfinite(), x, torch.nan)
    return quantize_blocks(x, block=block, dtype=torch.float8_e4m3fn, scale=scale)


def _block_scale(x: Tensor, block: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """max(amax / the largest code, TINY) of each block of float32 elements; NaN where x is not
    finite."""
    high = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    blocks = _blocks(x.abs(), block)
    amax = blocks.amax(tuple(range(1, 2 * x.ndim, 2))) if x.ndim else blocks
    return _floor(_divided(amax, high))


def _blocks(w: Tensor, block: tuple[int, ...]) -> Tensor:
    """(A, B, ...) -> (A/a, a, B/b, b, ...), zero-padded at the ends; a block of 0 holds one
    zero."""
    if len(block) != w.ndim:
        raise ValueError(f"block {block} and tensor of shape {tuple(w.shape)} differ in rank")
    sizes = list(zip(w.shape, block, strict=True))
    pad = [extra for n, b in reversed(sizes) for extra in (0, -n % b if b else 1)]
    padded = torch.nn.functional.pad(w, pad)
    return padded.reshape(
        [k for n, b in zip(padded.shape, block, strict=True) for k in (n // (b or 1), b or 1)]
    )


def _spread(scale: Tensor, block: tuple[int, ...], shape: torch.Size) -> Tensor:
    expected = [groups(n, b) if b else 1 for n, b in zip(shape, block, strict=True)]
    if len(scale.shape) != len(expected) or any(
        found != wanted and (found != 1 or wanted)  # one scale may be there for no elements
        for found, wanted in zip(scale.shape, expected, strict=True)
    ):
        raise ValueError(
            f"blocks of {tuple(block)} in a tensor of {tuple(shape)} have scales of shape "
            f"{tuple(expected)}, got {tuple(scale.shape)}"
        )
    for dim, (b, n) in enumerate(zip(block, shape, strict=True)):
        if b > 1 and scale.shape[dim] != 1:
            scale = scale.repeat_interleave(b, dim).narrow(dim, 0, n)
    return scale


# --- groups


def _pieces(length: int, group_size: int) -> Iterator[tuple[slice, slice, int]]:
    """Columns, groups and width of the whole groups, then of the shorter last one."""
    whole = length // max(group_size, 1)
    if whole:
        yield slice(0, whole * group_size), slice(0, whole), group_size
    if length % max(group_size, 1):
        yield slice(whole * group_size, length), slice(whole, whole + 1), length % group_size


def _per_group(reduce: Callable[[Tensor], Tensor], w: Tensor, group_size: int) -> Tensor:
    """`reduce` maps (R, g) float32 to (R,) or (R, n); the result is (..., G) or (..., G, n)."""
    length = w.shape[-1]
    if w.numel() == 0:
        shape = reduce(w.new_zeros(1, 1, dtype=torch.float32)).shape[1:]
        return w.new_zeros(*w.shape[:-1], groups(length, group_size), *shape, dtype=torch.float32)
    rows = w.reshape(-1, length)
    step = max(1, (CHUNK if w.device.type == "cpu" else DEVICE_CHUNK) // length)
    parts = []
    for chunk in rows.split(step):
        found = []
        for columns, _, width in _pieces(length, group_size):
            values = reduce(chunk[:, columns].float().reshape(-1, width))
            found.append(values.reshape(len(chunk), -1, *values.shape[1:]))
        parts.append(found[0] if len(found) == 1 else torch.cat(found, 1))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(*w.shape[:-1], *whole.shape[1:])


def _by_group(
    w: Tensor, group_size: int, scale: Tensor, fn: Callable[..., Tensor], zero: Tensor | None = None
) -> Tensor:
    """fn(x, s[, z]) on (..., g, width) float32 views with broadcast group parameters.

    Gives (..., K) float32.
    """
    parameters = (scale,) if zero is None else (scale, zero)
    if any(p.shape[-1] != groups(w.shape[-1], group_size) for p in parameters):
        count = groups(w.shape[-1], group_size)
        raise ValueError(
            f"a row of {w.shape[-1]} in groups of {group_size} has {count} scales, got "
            f"{tuple(scale.shape)}"
        )
    parts = []
    for columns, group, width in _pieces(w.shape[-1], group_size):
        x = w[..., columns].float().unflatten(-1, (-1, width))
        parts.append(fn(x, *(p[..., group, None].float() for p in parameters)).flatten(-2))
    if not parts:
        return w.float()
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
