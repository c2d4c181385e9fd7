"""An operand to MXFP8 in both directions, in Triton.

One launch: a tile of 128 x 128 holds whole blocks of 32 of both directions, in four pieces as in
``directions``. Scales are powers of two, so that quotients are exact products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_core.mx import EMAX, MX_BLOCK
from ao_kernels.ops.directions import padded
from ao_kernels.ops.quantize_mx import quantize_mx
from ao_kernels.triton import codes, launch, tiles
from ao_kernels.triton.directions import TILE, Plan, extent, ready, store_rows, store_words
from ao_kernels.triton.peaks import values_of

_WARPS = 8
_BLOCK = tl.constexpr(MX_BLOCK)
_E8M0 = torch.float8_e8m0fnu


@triton.jit
def _biased(peak, EMAX: tl.constexpr):
    """The e8m0 scale of a block whose largest :func:`codes.magnitude` is ``peak``, as a number."""
    biased = tl.minimum(tl.maximum((peak >> 23) - EMAX, 0), 254)
    return tl.where(peak < 0x7F800000, biased, 255)


@triton.jit
def _inverse(biased):
    """1 / scale, exactly; NaN of NaN."""
    value = ((254 - biased) << 23).to(tl.float32, bitcast=True)
    return tl.where(biased == 255, float("nan"), value)


@triton.jit
def _row_inverse(value, scale, m, tile_k, rows, groups, EMAX: tl.constexpr):
    """1 / scale of each element of a piece, by blocks of its rows; stores the scales."""
    PIECE: tl.constexpr = value.shape[0]
    COLUMNS: tl.constexpr = value.shape[1]
    BLOCKS: tl.constexpr = COLUMNS // _BLOCK
    size = tl.reshape(codes.magnitude(value), (PIECE, BLOCKS, _BLOCK))
    biased = _biased(tl.max(size, 2), EMAX)
    group = tile_k * BLOCKS + tl.arange(0, BLOCKS)
    at = scale + m.to(tl.int64)[:, None] * groups + group[None, :]
    there = (m < rows)[:, None] & (group < groups)[None, :]
    tl.store(at, biased.to(tl.uint8), mask=there)
    spread = tl.broadcast_to(_inverse(biased)[:, :, None], (PIECE, BLOCKS, _BLOCK))
    return tl.reshape(spread, (PIECE, COLUMNS))


@triton.jit
def _column_inverse(v0, v1, v2, v3, scale_t, k, tile_m, columns, groups_t, EMAX: tl.constexpr):
    """1 / scale of each element of the pieces, by blocks of columns; stores the scales."""
    PIECE: tl.constexpr = v0.shape[0]
    COLUMNS: tl.constexpr = v0.shape[1]
    BLOCKS: tl.constexpr = 4 * PIECE // _BLOCK
    first = tl.maximum(codes.magnitude(v0), codes.magnitude(v1))
    second = tl.maximum(codes.magnitude(v2), codes.magnitude(v3))
    size = tl.reshape(tl.maximum(first, second), (BLOCKS, _BLOCK // 4, COLUMNS))
    biased = _biased(tl.max(size, 1), EMAX)
    group = tile_m * BLOCKS + tl.arange(0, BLOCKS)
    at = scale_t + k.to(tl.int64)[None, :] * groups_t + group[:, None]
    there = (k < columns)[None, :] & (group < groups_t)[:, None]
    tl.store(at, biased.to(tl.uint8), mask=there)
    spread = tl.broadcast_to(_inverse(biased)[:, None, :], (BLOCKS, _BLOCK // 4, COLUMNS))
    return tl.reshape(spread, (PIECE, COLUMNS))


@triton.jit(do_not_specialize=["K"])
def _quantize_mx_tiles(
    x,
    codes_MK,
    scale,
    codes_KM,
    scale_t,
    M,
    K,
    rows,
    columns,
    tiles_k,
    groups,
    groups_t,
    x_stride,
    x_matrix,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    NATIVE: tl.constexpr,
    EMAX: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    DIVIDES: tl.constexpr,
    COMPILED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    K = extent(K, DIVIDES)
    tile, matrix = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tile_m, tile_k = tile // tiles_k, tile % tiles_k
    x += matrix * x_matrix
    codes_MK += matrix * rows * columns
    codes_KM += matrix * rows * columns
    scale += matrix * rows * groups
    scale_t += matrix * columns * groups_t

    word = tile_m * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    m = word * 4
    k = tile_k * BLOCK + tl.arange(0, BLOCK)
    v0 = values_of(x, m, k, M, K, x_stride, EVEN)
    v1 = values_of(x, m + 1, k, M, K, x_stride, EVEN)
    v2 = values_of(x, m + 2, k, M, K, x_stride, EVEN)
    v3 = values_of(x, m + 3, k, M, K, x_stride, EVEN)
    if ROWS:
        i0 = _row_inverse(v0, scale, m, tile_k, rows, groups, EMAX)
        i1 = _row_inverse(v1, scale, m + 1, tile_k, rows, groups, EMAX)
        i2 = _row_inverse(v2, scale, m + 2, tile_k, rows, groups, EMAX)
        i3 = _row_inverse(v3, scale, m + 3, tile_k, rows, groups, EMAX)
        c0 = codes.float8_codes(v0 * i0, MANTISSA, BIAS, NATIVE)
        c1 = codes.float8_codes(v1 * i1, MANTISSA, BIAS, NATIVE)
        c2 = codes.float8_codes(v2 * i2, MANTISSA, BIAS, NATIVE)
        c3 = codes.float8_codes(v3 * i3, MANTISSA, BIAS, NATIVE)
        store_rows(codes_MK, c0, m, k, rows, columns, EVEN)
        store_rows(codes_MK, c1, m + 1, k, rows, columns, EVEN)
        store_rows(codes_MK, c2, m + 2, k, rows, columns, EVEN)
        store_rows(codes_MK, c3, m + 3, k, rows, columns, EVEN)
    if COLUMNS:
        inverse = _column_inverse(v0, v1, v2, v3, scale_t, k, tile_m, columns, groups_t, EMAX)
        c0 = codes.float8_codes(v0 * inverse, MANTISSA, BIAS, NATIVE)
        c1 = codes.float8_codes(v1 * inverse, MANTISSA, BIAS, NATIVE)
        c2 = codes.float8_codes(v2 * inverse, MANTISSA, BIAS, NATIVE)
        c3 = codes.float8_codes(v3 * inverse, MANTISSA, BIAS, NATIVE)
        store_words(codes_KM, c0, c1, c2, c3, word, k, rows, columns, EVEN, COMPILED)


def _supports(x: Tensor, dtype: torch.dtype, outputs: str) -> str | None:
    return tiles.dtype_refusal(x)


_PLANS: launch.Plans[Plan] = launch.Plans()


def _direct(
    _: int, x: Tensor, dtype: torch.dtype, outputs: str = "both"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype, outputs))
    return NotImplemented if plan is None else plan(x)


@quantize_mx.kernel("triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct))
def _run(x: Tensor, dtype: torch.dtype, outputs: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_mx.reference(x, dtype, outputs)
    x = ready(x)
    key = (launch.facts(x), dtype, outputs)
    return (_PLANS.get(key) or _PLANS.keep(key, _plan(x, dtype, outputs)))(x)


def _plan(x: Tensor, dtype: torch.dtype, outputs: str) -> Plan:
    swapped = x.stride(-1) != 1
    if swapped:
        x = x.mT
        outputs = {"rows": "columns", "columns": "rows"}.get(outputs, outputs)
    (M, K), n_matrices = x.shape[-2:], x.shape[0] if x.dim() == 3 else 1
    rows, columns = padded(M), padded(K)
    groups, groups_t = triton.cdiv(columns, MX_BLOCK), triton.cdiv(rows, MX_BLOCK)
    tiles_m, tiles_k = triton.cdiv(rows, TILE), triton.cdiv(columns, TILE)
    constants = codes.constants(dtype, x.device)
    constants = {name: constants[name] for name in ("MANTISSA", "BIAS", "NATIVE")}
    constants |= {
        "EMAX": EMAX[dtype],
        "ROWS": outputs != "columns",
        "COLUMNS": outputs != "rows",
        "EVEN": M % TILE == 0 and K % TILE == 0,
        "DIVIDES": K % 16 == 0,
        "COMPILED": not tiles.INTERPRETED,
        "BLOCK": TILE,
    }
    stride = x.stride(0) if x.dim() == 3 else 0
    quantize = launch.Launch(
        _quantize_mx_tiles,
        (tiles_m * tiles_k, n_matrices),
        (M, K, rows, columns, tiles_k, groups, groups_t, x.stride(-2), stride),
        constants,
        {"num_warps": _WARPS, "num_stages": 1, "enable_fp_fusion": False},
        x.device,
    )
    experts = tuple(x.shape[:-2])

    def room(wanted: bool, rows: int, columns: int, dtype: torch.dtype) -> launch.Room:
        return launch.Room.of((*experts, rows, columns) if wanted else (0,), dtype)

    return Plan(
        room(outputs != "columns", rows, columns, dtype),
        room(outputs != "columns", rows, groups, _E8M0),
        room(outputs != "rows", columns, rows, dtype),
        room(outputs != "rows", columns, groups_t, _E8M0),
        None,
        quantize,
        swapped,
        own=True,
    )
