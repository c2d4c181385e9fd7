"""The largest magnitudes of a tensor, or of its rows and columns, in Triton.

M rows, K columns of x; ``rows`` and ``columns``, M16 and K16, of its codes. ``_peaks`` reads x once
and leaves those of its parts; ``_scales`` makes scales of those of rows and columns. No atomics,
and a maximum has no order: bits repeat.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.directions import padded
from ao_kernels.triton import codes, launch, tiles

_COLUMNS = 256  # of a tile
_TILE = 8192  # elements of a tile: 64 bytes of bfloat16 a thread of 256
_PROGRAMS = 4  # a multiprocessor: what 64 registers allow programs of 256 threads
_SCALES = 256  # of a program of _scales
_PARTS = 16  # at a time


@triton.jit
def values_of(x, m, k, M, K, x_stride, EVEN: tl.constexpr):
    """Elements (m, k) as float32; 0 outside."""
    at = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    if EVEN:
        loaded = tl.load(at)
    else:
        loaded = tl.load(at, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
    return codes.widened(loaded)


@triton.jit
def _peaks(
    x,
    peaks,
    M,
    K,
    rows,
    columns,
    tiles_k,
    steps,
    of_columns,
    x_stride,
    x_matrix,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``peaks[program]`` if WHOLE; else of rows ``[part of K, m]`` and, from ``of_columns`` on, of
    columns ``[part of M, k]``."""
    program, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part_m, part_k = program // tiles_k, program % tiles_k
    x += matrix * x_matrix
    k = part_k * BLOCK_K + tl.arange(0, BLOCK_K)
    largest = tl.zeros((BLOCK_M, BLOCK_K), tl.int32)
    first = part_m * steps
    for tile_m in range(first, tl.minimum(first + steps, tl.cdiv(M, BLOCK_M))):
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        size = codes.magnitude(values_of(x, m, k, M, K, x_stride, EVEN))
        if ROWS:
            to = peaks + (matrix * tiles_k + part_k) * rows + m
            tl.store(to, tl.max(size, 1), mask=m < rows)
        if WHOLE or COLUMNS:
            largest = tl.maximum(largest, size)
    if WHOLE:
        tl.store(peaks + program, tl.max(tl.max(largest, 0), 0))
    elif COLUMNS:
        parts = tl.num_programs(0) // tiles_k
        to = peaks + of_columns + (matrix * parts + part_m) * columns + k
        tl.store(to, tl.max(largest, 0), mask=k < columns)


@triton.jit
def _scales_of(
    peaks,
    scale,
    inverse,
    n,
    n_parts,
    program,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    POWER: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    at = program * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)
    largest = tl.zeros((PARTS, BLOCK), tl.int32)
    for start in range(0, n_parts, PARTS):
        there = (start + part < n_parts)[:, None] & (at < n)[None, :]
        from_ = peaks + (start + part).to(tl.int64)[:, None] * n + at[None, :]
        largest = tl.maximum(largest, tl.load(from_, mask=there, other=0))
    step = codes.scale_of(tl.max(largest, 0), HIGH, POWER, FUSED)
    tl.store(scale + at, step, mask=at < n)
    tl.store(inverse + at, codes.inverse_of(step, MANTISSA, POWER, FUSED), mask=at < n)


@triton.jit
def _scales(
    peaks,
    scale,
    scale_t,
    inverse,
    rows,
    columns,
    row_parts,
    column_parts,
    row_programs,
    of_columns,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    POWER: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Scales of rows and columns from the peaks of their parts, and inverses: of the rows of all
    matrices, then of the columns."""
    program, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if program < row_programs:
        part, at = peaks + matrix * row_parts * rows, matrix * rows
        _scales_of(
            part,
            scale + at,
            inverse + at,
            rows,
            row_parts,
            program,
            HIGH,
            MANTISSA,
            POWER,
            FUSED,
            BLOCK,
            PARTS,
        )
    else:
        program -= row_programs
        part, at = peaks + of_columns + matrix * column_parts * columns, matrix * columns
        _scales_of(
            part,
            scale_t + at,
            inverse + tl.num_programs(1).to(tl.int64) * rows + at,
            columns,
            column_parts,
            program,
            HIGH,
            MANTISSA,
            POWER,
            FUSED,
            BLOCK,
            PARTS,
        )


class Peaks(NamedTuple):
    """``room``: n_peaks of the whole tensor, or those of rows and columns; ``scales``: of these,
    with ``inverse``."""

    room: launch.Room
    n_peaks: int
    find: launch.Launch
    scales: launch.Launch | None
    inverse: launch.Room | None


class _Parts(NamedTuple):
    """How programs share the work: each takes ``steps`` tiles (BLOCK_M, BLOCK_K) below another, so
    many that all programs run at once: a few that wait for the others to end would run alone."""

    block_m: int
    block_k: int
    tiles_k: int
    steps: int
    parts_m: int

    @classmethod
    def of(cls, M: int, K: int, n_matrices: int, device: torch.device) -> _Parts:
        block_k = min(_COLUMNS, max(16, triton.next_power_of_2(K)))
        block_m = min(_TILE // block_k, max(16, triton.next_power_of_2(M)))
        tiles_m, tiles_k = triton.cdiv(M, block_m), triton.cdiv(K, block_k)
        programs = _PROGRAMS * tiles.multiprocessors(device)
        steps = triton.cdiv(tiles_m, max(1, programs // (tiles_k * n_matrices)))
        return cls(block_m, block_k, tiles_k, steps, triton.cdiv(tiles_m, steps))


def _find_launch(
    x: Tensor, parts: _Parts, of_columns: int, whole: bool, rows: bool, columns: bool
) -> launch.Launch:
    M, K = x.shape[-2:]
    even = M % parts.block_m == 0 and K % parts.block_k == 0
    return launch.Launch(
        _peaks,
        (parts.tiles_k * parts.parts_m, x.shape[0] if x.dim() == 3 else 1),
        (
            M,
            K,
            padded(M),
            padded(K),
            parts.tiles_k,
            parts.steps,
            of_columns,
            x.stride(-2),
            x.stride(0) if x.dim() == 3 else 0,
        ),
        {
            "WHOLE": whole,
            "ROWS": rows,
            "COLUMNS": columns,
            "EVEN": even,
            "BLOCK_M": parts.block_m,
            "BLOCK_K": parts.block_k,
        },
        {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False},
        x.device,
    )


def of_tensor(x: Tensor) -> Peaks:
    """Of the whole of x (M, K), whose rows lie in one piece."""
    M, K = x.shape
    parts = _Parts.of(M, K, 1, x.device)
    n_peaks = parts.tiles_k * parts.parts_m
    find = _find_launch(x, parts, 0, True, False, False)
    return Peaks(launch.Room.of((n_peaks,), torch.int32), n_peaks, find, None, None)


def of_vectors(
    x: Tensor, dtype: torch.dtype, *, power_of_two: bool, rows: bool, columns: bool
) -> Peaks:
    """Of rows or columns, or both, of x (M, K) or (E, M, K), and their scales: M16 and K16 each."""
    M, K = x.shape[-2:]
    n_matrices = x.shape[0] if x.dim() == 3 else 1
    parts = _Parts.of(M, K, n_matrices, x.device)
    M, K = padded(M), padded(K)
    of_columns = n_matrices * parts.tiles_k * M if rows else 0
    n_peaks = of_columns + (n_matrices * parts.parts_m * K if columns else 0)
    row_programs = triton.cdiv(M, _SCALES) if rows else 0
    column_programs = triton.cdiv(K, _SCALES) if columns else 0
    constants = codes.constants(dtype, x.device)
    scales = launch.Launch(
        _scales,
        (row_programs + column_programs, n_matrices),
        (M, K, parts.tiles_k, parts.parts_m, row_programs, of_columns),
        {
            "HIGH": constants["HIGH"],
            "MANTISSA": constants["MANTISSA"],
            "POWER": power_of_two,
            "FUSED": constants["FUSED"],
            "BLOCK": _SCALES,
            "PARTS": _PARTS,
        },
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
        x.device,
    )
    find = _find_launch(x, parts, of_columns, False, rows, columns)
    inverse = launch.Room.of((n_matrices * (M + K),), torch.float32)
    return Peaks(launch.Room.of((n_peaks,), torch.int32), n_peaks, find, scales, inverse)
