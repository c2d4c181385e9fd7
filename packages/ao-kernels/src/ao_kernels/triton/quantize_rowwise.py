"""Rows to float8 or int8 in Triton.

M rows, K columns, P = K rounded up to the padding. A program holds whole rows in registers, as
blocks of one row; rows too long for that are read twice, the second time mostly from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.quantize_rowwise import quantize_rowwise
from ao_kernels.triton import codes, launch, tiles
from ao_kernels.triton.quantize_block import MOST, block_launch, options

_PIECE = 8192  # elements of a long row at a time
_LONGEST = 2**31 - 1 - _PIECE  # columns are counted in 32 bits


@triton.jit
def _quantize_long_rows(
    x,
    codes_MP,
    scale,
    K,
    padded,
    x_stride,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    POWER: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    row = x + m * x_stride
    peaks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, K, BLOCK):
        loaded = tl.load(row + start + k, mask=start + k < K, other=0.0)
        peaks = tl.maximum(peaks, codes.magnitude(codes.widened(loaded)))
    step = codes.scale_of(tl.max(peaks, 0), HIGH, POWER, FUSED and MANTISSA != 0)
    tl.store(scale + m, step)
    for start in range(0, padded, BLOCK):
        loaded = tl.load(row + start + k, mask=start + k < K, other=0.0)
        value = codes.widened(loaded)
        found = codes.codes_of(
            value, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, None, POWER
        )
        tl.store(codes_MP + m * padded + start + k, found, mask=start + k < padded)


@triton.jit
def _quantize_static_rows(
    x,
    codes_MP,
    scale,
    given,
    K,
    padded,
    x_stride,
    given_stride,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    row = x + m * x_stride
    step = tl.load(given + m * given_stride)
    peaks = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, padded, BLOCK):
        loaded = tl.load(row + start + k, mask=start + k < K, other=0.0)
        value = codes.widened(loaded)
        peaks = tl.maximum(peaks, codes.magnitude(value))
        found = codes.codes_of(value, step, True, MANTISSA, BIAS, FUSED, NATIVE, SHORT)
        tl.store(codes_MP + m * padded + start + k, found, mask=start + k < padded)
    finite = codes.is_finite(tl.max(peaks, 0).to(tl.float32, bitcast=True))
    tl.store(scale + m, tl.where(finite, step, float("nan")))


def _is_short(x: Tensor) -> bool:
    return x.dtype != torch.float32


def static_launch(
    x_MK: Tensor, dtype: torch.dtype, *, padded: int | None = None, each: bool = False
) -> launch.Launch:
    """Like :func:`row_launch`, and given scales: one that all rows have or, with ``each``, one a
    row, which may be the same tensor as scale. That of a row with NaN or inf becomes NaN."""
    M, K = x_MK.shape
    block = min(_PIECE, max(128, triton.next_power_of_2(padded or K)))
    return launch.Launch(
        _quantize_static_rows,
        (M,),
        (K, padded or K, x_MK.stride(0), 1 if each else 0),
        {**codes.constants(dtype, x_MK.device), "SHORT": _is_short(x_MK), "BLOCK": block},
        options(block),
        x_MK.device,
    )


def row_launch(
    x_MK: Tensor, dtype: torch.dtype, *, padded: int | None = None, power_of_two: bool = False
) -> launch.Launch:
    """Launch with x (M, K) of last stride 1, codes of one byte (M, P) and scale (M,).

    P is K or ``padded``; columns beyond K become 0.
    """
    M, K = x_MK.shape
    if (padded or K) <= MOST:
        return block_launch(x_MK, dtype, block_cols=K, padded=padded, power_of_two=power_of_two)
    return launch.Launch(
        _quantize_long_rows,
        (M,),
        (K, padded or K, x_MK.stride(0)),
        {
            **codes.constants(dtype, x_MK.device),
            "POWER": power_of_two,
            "SHORT": _is_short(x_MK),
            "BLOCK": _PIECE,
        },
        options(_PIECE),
        x_MK.device,
    )


def row_refusal(x: Tensor) -> str | None:
    """Why the kernels of this module do not take rows of x, or None."""
    if x.shape[-1] > _LONGEST:
        return f"x has rows of {x.shape[-1]} elements; the Triton kernel takes {_LONGEST}"
    return tiles.dtype_refusal(x)


def _supports(x: Tensor, dtype: torch.dtype) -> str | None:
    return row_refusal(x)


class _Plan(NamedTuple):
    quantize: launch.Launch
    codes: launch.Room
    scale: launch.Room


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _direct(_: int, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype))
    return NotImplemented if plan is None else _launch(plan, x)


@quantize_rowwise.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_rowwise.reference(x, dtype)
    x_MK = tiles.rows(x)
    key = (launch.facts(x_MK), x.shape, dtype)
    plan = _PLANS.get(key) or _PLANS.keep(key, _plan(x.shape, x_MK, dtype))
    if launch.same_places((x,), (x_MK,)):
        _PLANS.keep((launch.facts(x), dtype), plan)
    return _launch(plan, x_MK)


def _plan(shape: torch.Size, x_MK: Tensor, dtype: torch.dtype) -> _Plan:
    scale = launch.Room.of((*shape[:-1], 1), torch.float32)
    return _Plan(row_launch(x_MK, dtype), launch.Room.of(shape, dtype), scale)


def _launch(plan: _Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    result, scale = plan.codes.like(x), plan.scale.like(x)
    plan.quantize(x, result, scale)
    return result, scale
