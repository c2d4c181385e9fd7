"""Operands to codes in both directions in Triton: what the ``quantize_*_both`` ops share.

M rows, K columns of x; ``rows`` and ``columns``, M16 and K16, of its codes. A program of
``_quantize_tiles`` reads a tile of 128 x 128 once and writes its codes by rows and transposed, or
one of them: 2 bytes of bfloat16 read and 2 written for an element. It holds the tile as four
pieces, rows 4i, 4i + 1, 4i + 2 and 4i + 3, so that the four codes above each other make one word:
words are what goes through shared memory, and is stored transposed.

Where scales span more than a tile, the launches of ``peaks`` read x before. Tiles are worked off
backwards, for what was read last is still in the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.directions import padded
from ao_kernels.triton import codes, launch
from ao_kernels.triton.peaks import Peaks, of_tensor, of_vectors, values_of

TILE = 128  # a block of scales
TENSOR, VECTORS, ROW_BLOCKS, SQUARE_BLOCKS = 0, 1, 2, 3  # what shares a scale
_TENSOR, _VECTORS = tl.constexpr(TENSOR), tl.constexpr(VECTORS)
_ROW_BLOCKS = tl.constexpr(ROW_BLOCKS)


class Tile(NamedTuple):
    """What a program works on."""

    rows: int
    columns: int
    warps: int


_TILES = {
    TENSOR: Tile(TILE, 64, 4),
    VECTORS: Tile(TILE, 64, 4),
    ROW_BLOCKS: Tile(TILE, TILE, 8),
    SQUARE_BLOCKS: Tile(TILE, TILE, 8),
}


@triton.jit
def store_rows(codes_MK, found, m, k, rows, columns, EVEN: tl.constexpr):
    """codes[m, k] of a piece."""
    at = codes_MK + m.to(tl.int64)[:, None] * columns + k[None, :]
    if EVEN:
        tl.store(at, found)
    else:
        tl.store(at, found, mask=(m < rows)[:, None] & (k < columns)[None, :])


@triton.jit
def _bits(found):
    return found.to(tl.int32) & 0xFF


@triton.jit
def _words(c0, c1, c2, c3, COMPILED: tl.constexpr):
    """The codes of four pieces at the same place, as one word.

    By instructions: four bytes of each piece lie in a register. From shifts, ptxas (of triton 3.6,
    sm_90) makes wrong words where the codes are stored by rows as well; and they are more.
    """
    if COMPILED:
        words = tl.inline_asm_elementwise(
            """{
            .reg .b32 low01, low23, high01, high23;
            prmt.b32 low01, $4, $5, 0x5140;
            prmt.b32 low23, $6, $7, 0x5140;
            prmt.b32 high01, $4, $5, 0x7362;
            prmt.b32 high23, $6, $7, 0x7362;
            prmt.b32 $0, low01, low23, 0x5410;
            prmt.b32 $1, low01, low23, 0x7632;
            prmt.b32 $2, high01, high23, 0x5410;
            prmt.b32 $3, high01, high23, 0x7632;
            }""",
            "=&r,=&r,=&r,=&r,r,r,r,r",
            [c0, c1, c2, c3],
            dtype=tl.int32,
            is_pure=True,
            pack=4,
        )
    else:
        words = _bits(c0) | (_bits(c1) << 8) | (_bits(c2) << 16) | (_bits(c3) << 24)
    return words


@triton.jit
def store_words(
    codes_KM,
    c0,
    c1,
    c2,
    c3,
    word,
    k,
    rows,
    columns,
    EVEN: tl.constexpr,
    COMPILED: tl.constexpr,
):
    """Transposed codes[k, 4 * word + piece] of the four pieces."""
    words = _words(c0, c1, c2, c3, COMPILED)
    to = codes_KM.to(tl.pointer_type(tl.int32))
    at = to + k.to(tl.int64)[:, None] * (rows // 4) + word[None, :]
    if EVEN:
        tl.store(at, tl.trans(words))
    else:
        there = (k < columns)[:, None] & (word < rows // 4)[None, :]
        tl.store(at, tl.trans(words), mask=there)


@triton.jit
def _row_step(
    value, scale, m, tile_k, rows, HIGH: tl.constexpr, POWER: tl.constexpr, FUSED: tl.constexpr
):
    """Scales of the blocks of rows m in this tile, which are stored."""
    step = codes.scale_of(tl.max(codes.magnitude(value), 1), HIGH, POWER, FUSED)
    tl.store(scale + tile_k.to(tl.int64) * rows + m, step, mask=m < rows)
    return step[:, None]


@triton.jit
def _known_codes(
    value,
    scale,
    inverse,
    m,
    rows,
    POWER: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    SHORT: tl.constexpr,
):
    """Codes of rows m, whose scales are there."""
    known = tl.load(inverse + m, mask=m < rows, other=1.0)[:, None]
    if POWER and MANTISSA != 0:
        step = known
    else:
        step = tl.load(scale + m, mask=m < rows, other=1.0)[:, None]
    return codes.codes_of(value, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)


@triton.jit
def _column_peaks(v0, v1, v2, v3):
    first = tl.maximum(codes.magnitude(v0), codes.magnitude(v1))
    second = tl.maximum(codes.magnitude(v2), codes.magnitude(v3))
    return tl.max(tl.maximum(first, second), 0)


@triton.jit
def extent(K, DIVIDES: tl.constexpr):
    """K, with what a kernel that does not specialize on it has to be told: that 16 divides it.

    A kernel that knows of K = 1 knows that most elements of a thread are equal, and of several
    equal conversions to float8 ptxas (of triton 3.6, for sm_90) leaves one out: half of the codes
    are whatever a register held.
    """
    if DIVIDES:
        K = K // 16 * 16
    return K


@triton.jit(do_not_specialize=["K"])
def _quantize_tiles(
    x,
    codes_MK,
    scale,
    codes_KM,
    scale_t,
    peaks,  # of a tensor; of vectors, the inverses of their scales
    given,
    M,
    K,
    rows,
    columns,
    tiles_k,
    n_peaks,
    x_stride,
    x_matrix,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    KIND: tl.constexpr,
    POWER: tl.constexpr,
    GIVEN: tl.constexpr,
    SHORT: tl.constexpr,
    ROWS: tl.constexpr,  # codes by rows are wanted
    COLUMNS: tl.constexpr,  # and transposed ones
    EVEN: tl.constexpr,
    DIVIDES: tl.constexpr,
    PEAKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    K = extent(K, DIVIDES)
    tile, matrix = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile_m, tile_k = tile // tiles_k, tile % tiles_k
    x += matrix * x_matrix
    codes_MK += matrix * rows * columns
    codes_KM += matrix * rows * columns
    if KIND == _VECTORS:
        scale += matrix * rows
        scale_t += matrix * columns
        inverse_t = peaks + tl.num_programs(1).to(tl.int64) * rows + matrix * columns
        inverse = peaks + matrix * rows

    word = tile_m * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
    m = word * 4
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    v0 = values_of(x, m, k, M, K, x_stride, EVEN)
    v1 = values_of(x, m + 1, k, M, K, x_stride, EVEN)
    v2 = values_of(x, m + 2, k, M, K, x_stride, EVEN)
    v3 = values_of(x, m + 3, k, M, K, x_stride, EVEN)

    EXACT: tl.constexpr = KIND == _VECTORS and POWER and MANTISSA != 0  # inverses are enough
    if EXACT and COLUMNS:  # beside x: behind the rows' stores they are waited for
        known_t = tl.load(inverse_t + k, mask=k < columns, other=1.0)
    SHARED: tl.constexpr = KIND != _VECTORS and KIND != _ROW_BLOCKS  # by both directions
    if SHARED:
        if KIND != _TENSOR:
            step = codes.scale_of(tl.max(_column_peaks(v0, v1, v2, v3), 0), HIGH, POWER, FUSED)
            if ROWS:
                tl.store(scale + tile, step)
            if COLUMNS:
                tl.store(scale_t + tile_k * tl.cdiv(rows, BLOCK_M) + tile_m, step)
        elif GIVEN:
            step = tl.load(given)
            v0, v1 = codes.finite(v0, FUSED), codes.finite(v1, FUSED)
            v2, v3 = codes.finite(v2, FUSED), codes.finite(v3, FUSED)
        else:
            part = tl.arange(0, PEAKS)
            found = tl.load(peaks + part, mask=part < n_peaks, other=0)
            step = codes.scale_of(tl.max(found, 0), HIGH, POWER, FUSED)
        if KIND == _TENSOR and tile == 0:
            tl.store(scale, step)
        s0, s1, s2, s3 = step, step, step, step
        i0, i1, i2, i3 = None, None, None, None
    elif ROWS and KIND == _ROW_BLOCKS:
        s0 = _row_step(v0, scale, m, tile_k, rows, HIGH, POWER, FUSED)
        s1 = _row_step(v1, scale, m + 1, tile_k, rows, HIGH, POWER, FUSED)
        s2 = _row_step(v2, scale, m + 2, tile_k, rows, HIGH, POWER, FUSED)
        s3 = _row_step(v3, scale, m + 3, tile_k, rows, HIGH, POWER, FUSED)
        i0 = codes.inverse_of(s0, MANTISSA, POWER, FUSED)
        i1 = codes.inverse_of(s1, MANTISSA, POWER, FUSED)
        i2 = codes.inverse_of(s2, MANTISSA, POWER, FUSED)
        i3 = codes.inverse_of(s3, MANTISSA, POWER, FUSED)

    if ROWS and KIND == _VECTORS:
        c0 = _known_codes(v0, scale, inverse, m, rows, POWER, MANTISSA, BIAS, FUSED, NATIVE, SHORT)
        c1 = _known_codes(
            v1, scale, inverse, m + 1, rows, POWER, MANTISSA, BIAS, FUSED, NATIVE, SHORT
        )
        c2 = _known_codes(
            v2, scale, inverse, m + 2, rows, POWER, MANTISSA, BIAS, FUSED, NATIVE, SHORT
        )
        c3 = _known_codes(
            v3, scale, inverse, m + 3, rows, POWER, MANTISSA, BIAS, FUSED, NATIVE, SHORT
        )
    elif ROWS or SHARED:
        c0 = codes.codes_of(v0, s0, GIVEN, MANTISSA, BIAS, FUSED, NATIVE, SHORT, i0, POWER)
        c1 = codes.codes_of(v1, s1, GIVEN, MANTISSA, BIAS, FUSED, NATIVE, SHORT, i1, POWER)
        c2 = codes.codes_of(v2, s2, GIVEN, MANTISSA, BIAS, FUSED, NATIVE, SHORT, i2, POWER)
        c3 = codes.codes_of(v3, s3, GIVEN, MANTISSA, BIAS, FUSED, NATIVE, SHORT, i3, POWER)
    if ROWS:
        store_rows(codes_MK, c0, m, k, rows, columns, EVEN)
        store_rows(codes_MK, c1, m + 1, k, rows, columns, EVEN)
        store_rows(codes_MK, c2, m + 2, k, rows, columns, EVEN)
        store_rows(codes_MK, c3, m + 3, k, rows, columns, EVEN)
    if COLUMNS:
        if not SHARED:
            if KIND == _VECTORS:
                if EXACT:
                    step, known = known_t, known_t
                else:
                    step = tl.load(scale_t + k, mask=k < columns, other=1.0)
                    known = tl.load(inverse_t + k, mask=k < columns, other=1.0)
            else:
                step = codes.scale_of(_column_peaks(v0, v1, v2, v3), HIGH, POWER, FUSED)
                tl.store(scale_t + tile_m.to(tl.int64) * columns + k, step, mask=k < columns)
                known = codes.inverse_of(step, MANTISSA, POWER, FUSED)
            step, known = step[None, :], known[None, :]
            c0 = codes.codes_of(v0, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
            c1 = codes.codes_of(v1, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
            c2 = codes.codes_of(v2, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
            c3 = codes.codes_of(v3, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
        store_words(codes_KM, c0, c1, c2, c3, word, k, rows, columns, EVEN, FUSED)


class Plan(NamedTuple):
    """``swapped``: x comes transposed, so that its rows are the columns of the launches.
    ``scale_t``: None where it is ``scale``."""

    codes: launch.Room
    scale: launch.Room
    codes_t: launch.Room
    scale_t: launch.Room | None
    peaks: Peaks | None
    quantize: launch.Launch
    swapped: bool
    own: bool = False  # scales: the last launch takes neither peaks nor a given one

    def __call__(
        self, x: Tensor, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes and scale by rows and transposed."""
        found, scale = self.codes.like(x), self.scale.like(x)
        found_t = self.codes_t.like(x)
        scale_t = scale if self.scale_t is None else self.scale_t.like(x)
        peaks = None
        if self.peaks is not None:
            peaks = self.peaks.room.like(x)
            self.peaks.find(x, peaks)
            if self.peaks.scales is not None and self.peaks.inverse is not None:
                inverse = self.peaks.inverse.like(x)
                self.peaks.scales(peaks, scale, scale_t, inverse)
                peaks = inverse
        if self.own:
            self.quantize(x, found, scale, found_t, scale_t)
        else:
            self.quantize(x, found, scale, found_t, scale_t, peaks, given)
        if self.swapped:
            return found_t, scale_t, found, scale
        return found, scale, found_t, scale_t


def ready(x: Tensor) -> Tensor:
    """x, or a copy, whose rows or columns lie in one piece."""
    x = x.resolve_neg()
    return x if 1 in x.stride()[-2:] else x.contiguous()


def plan(
    x: Tensor,
    kind: int,
    dtype: torch.dtype,
    *,
    power_of_two: bool,
    outputs: str,
    given: bool = False,
    tile: Tile | None = None,
) -> Plan:
    """For tensors like x, which is :func:`ready` and not empty.

    ``tile``: of the kind's own, where scales are not of blocks, a tile may be smaller.
    """
    tile = tile or _TILES[kind]
    swapped = x.stride(-1) != 1
    if swapped:
        x = x.mT
        outputs = {"rows": "columns", "columns": "rows"}.get(outputs, outputs)
    by_row, by_column = outputs != "columns", outputs != "rows"
    peaks = None
    if kind == VECTORS:
        peaks = of_vectors(x, dtype, power_of_two=power_of_two, rows=by_row, columns=by_column)
    elif kind == TENSOR and not given:
        peaks = of_tensor(x)
    (M, K), n_matrices = x.shape[-2:], x.shape[0] if x.dim() == 3 else 1
    rows, columns = padded(M), padded(K)
    n_peaks = 0 if peaks is None else peaks.n_peaks
    constants = codes.constants(dtype, x.device)
    constants |= {
        "KIND": kind,
        "POWER": power_of_two,
        "GIVEN": given,
        "SHORT": x.dtype != torch.float32,
        "ROWS": by_row,
        "COLUMNS": by_column,
        "EVEN": M % tile.rows == 0 and K % tile.columns == 0,
        "DIVIDES": K % 16 == 0,
        "PEAKS": triton.next_power_of_2(n_peaks) if kind == TENSOR and n_peaks else 1,
        "BLOCK_M": tile.rows,
        "BLOCK_K": tile.columns,
    }
    tiles_m, tiles_k = triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.columns)
    matrix_stride = x.stride(0) if x.dim() == 3 else 0
    quantize = launch.Launch(
        _quantize_tiles,
        (tiles_m * tiles_k, n_matrices),
        (M, K, rows, columns, tiles_k, n_peaks, x.stride(-2), matrix_stride),
        constants,
        {"num_warps": tile.warps, "num_stages": 1, "enable_fp_fusion": False},
        x.device,
    )
    experts = tuple(x.shape[:-2])
    wanted = _rooms(kind, dtype, experts, rows, columns, by_row)
    found_t, scale_t = _rooms(kind, dtype, experts, columns, rows, by_column)
    scales = None if kind == TENSOR else scale_t
    return Plan(*wanted, found_t, scales, peaks, quantize, swapped)


def _rooms(
    kind: int, dtype: torch.dtype, experts: tuple[int, ...], rows: int, columns: int, wanted: bool
) -> tuple[launch.Room, launch.Room]:
    """Of codes (rows, columns) and their scale."""
    scale = launch.Room.of((), torch.float32)
    groups = triton.cdiv(columns, TILE)
    if kind == VECTORS:
        scale = launch.Room.of((*experts, rows, 1), torch.float32)
    elif kind == ROW_BLOCKS:
        scale = launch.Room((rows, groups), (1, rows), torch.float32)
    elif kind == SQUARE_BLOCKS:
        scale = launch.Room.of((triton.cdiv(rows, TILE), groups), torch.float32)
    if wanted:
        return launch.Room.of((*experts, rows, columns), dtype), scale
    return launch.Room.of((0,), dtype), scale if kind == TENSOR else launch.Room.of(
        (0,), torch.float32
    )
