"""Blocks of a matrix to float8 or int8 in Triton.

M rows, K columns, R x G blocks. A program holds one block in registers, or several rows of one
column of blocks where a block is a piece of one row: x is read once, codes are written once. Whole
rows as blocks make quantize_rowwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.quantize_block import quantize_block
from ao_kernels.triton import codes, launch, tiles

MOST = 16384  # elements of a block: 32 a thread of a program of 512
_ROW_TILE = 4096  # elements of a program that holds several rows


@triton.jit
def _quantize_blocks(
    x,
    codes_MP,
    scale,
    M,
    K,
    padded,
    groups,
    row_tiles,
    tile_rows,
    block_cols,
    written,
    x_stride,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    POWER: tl.constexpr,
    SHORT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    group, row_tile = tile % groups, tile // groups
    row = tl.arange(0, BLOCK_M)
    inside = (row_tile % row_tiles) * tile_rows + row  # of the M rows of one matrix
    there = (row < tile_rows) & (inside < M)
    m = (row_tile // row_tiles).to(tl.int64) * M + inside
    column = tl.arange(0, BLOCK_K)
    k = group * block_cols + column

    at = x + m[:, None] * x_stride + k[None, :]
    if EVEN:
        loaded = tl.load(at, mask=there[:, None], other=0.0)
    else:
        mask = there[:, None] & ((column < block_cols) & (k < K))[None, :]
        loaded = tl.load(at, mask=mask, other=0.0)
    value = codes.widened(loaded)
    peak = tl.max(codes.magnitude(value), 1)
    if ROWS:
        step = codes.scale_of(peak, HIGH, POWER, FUSED and MANTISSA != 0)
        tl.store(scale + m * groups + group, step, mask=there)
        step = step[:, None]
    else:
        step = codes.scale_of(tl.max(peak, 0), HIGH, POWER, FUSED and MANTISSA != 0)
        tl.store(scale + tile, step)
    found = codes.codes_of(value, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, None, POWER)
    to = codes_MP + m[:, None] * padded + k[None, :]
    if EVEN:
        tl.store(to, found, mask=there[:, None])
    else:
        tl.store(to, found, mask=there[:, None] & ((column < written) & (k < padded))[None, :])


def block_launch(
    x_MK: Tensor,
    dtype: torch.dtype,
    *,
    matrices: int = 1,
    block_rows: int = 1,
    block_cols: int,
    padded: int | None = None,
    power_of_two: bool = False,
) -> launch.Launch:
    """Launch with x (matrices * M, K) of last stride 1, codes of one byte (matrices * M, P) and
    scale (matrices * R, G).

    P is K, or ``padded`` for whole rows; columns beyond K become 0.
    """
    n_rows, K = x_MK.shape
    M = n_rows // matrices
    groups = triton.cdiv(K, block_cols)
    width = block_cols if padded is None else padded
    block_k = triton.next_power_of_2(width)
    if block_rows == 1:
        # Small blocks of rows: enough programs come before full ones.
        most = max(1, min(_ROW_TILE // block_k, n_rows * groups // 1024))
        block_m = tile_rows = 1 << (most.bit_length() - 1)
    else:
        tile_rows, block_m = block_rows, triton.next_power_of_2(block_rows)
    row_tiles = triton.cdiv(M, tile_rows)
    constants = codes.constants(dtype, x_MK.device)
    constants |= {
        "ROWS": block_rows == 1,
        "POWER": power_of_two,
        "SHORT": x_MK.dtype != torch.float32,
        "EVEN": block_k == block_cols and K % block_cols == 0,
        "BLOCK_M": block_m,
        "BLOCK_K": block_k,
    }
    numbers = (M, K, padded or K, groups, row_tiles, tile_rows, block_cols, width, x_MK.stride(0))
    return launch.Launch(
        _quantize_blocks,
        (groups * row_tiles * matrices,),
        numbers,
        constants,
        options(block_m * block_k),
        x_MK.device,
    )


def options(n_elements: int) -> dict[str, int | bool]:
    """16 elements a thread, 32 in the largest tiles."""
    warps = max(1, min(16, n_elements // 512))
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}


def _supports(x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int) -> str | None:
    size = triton.next_power_of_2(block_rows) * triton.next_power_of_2(block_cols)
    if size > MOST:
        return (
            f"blocks of {block_rows} x {block_cols}, rounded up to powers of two, have {size} "
            f"elements; the Triton kernel takes {MOST}"
        )
    return tiles.dtype_refusal(x)


class _Plan(NamedTuple):
    quantize: launch.Launch
    codes: launch.Room
    scale: launch.Room


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _direct(
    _: int, x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int
) -> tuple[Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype, block_rows, block_cols))
    return NotImplemented if plan is None else _launch(plan, x)


@quantize_block.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_block.reference(x, dtype, block_rows, block_cols)
    x_MK, others = tiles.rows(x), (dtype, block_rows, block_cols)
    key = (launch.facts(x_MK), x.shape, others)
    plan = _PLANS.get(key) or _PLANS.keep(key, _plan(x.shape, x_MK, *others))
    if launch.same_places((x,), (x_MK,)):
        _PLANS.keep((launch.facts(x), *others), plan)
    return _launch(plan, x_MK)


def _plan(
    shape: torch.Size, x_MK: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int
) -> _Plan:
    *leading, M, K = shape
    # Where they end with a block, matrices below each other are one matrix.
    matrices = 1 if M % block_rows == 0 else len(x_MK) // M
    scale = (*leading, triton.cdiv(M, block_rows), triton.cdiv(K, block_cols))
    return _Plan(
        block_launch(x_MK, dtype, matrices=matrices, block_rows=block_rows, block_cols=block_cols),
        launch.Room.of(shape, dtype),
        launch.Room.of(scale, torch.float32),
    )


def _launch(plan: _Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    result, scale = plan.codes.like(x), plan.scale.like(x)
    plan.quantize(x, result, scale)
    return result, scale
