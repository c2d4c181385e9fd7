"""The product of a mixture of experts in Triton: what the grouped linears share.

T tokens sorted by expert, E experts, N output features, K input features, G groups of block_k input
features. One launch serves all experts. A program computes a (BLOCK_N, BLOCK_M) tile of the
transposed result, of tokens of one expert, which it finds from ``offsets``; the grid has as many
rows of tiles as the worst of all ``offsets`` could need, and programs past the last one return. The
host never waits for ``offsets``. Rows of no expert are one expert more, whose results are zeros.
Without ``offsets`` there is one expert, and all rows are its own: weight-only linears use that.

A program walks over K in chunks that never cross a group and adds up

    scale[n, g] * x_scale[t, g] * (sum_k value[n, k] * x[t, k] - shift[n, g] * sum_k x[t, k])

over the k of each chunk: value is a float8 or int8 code or an unsigned code less 2**(bits - 1),
exact in 16-bit floats, and shift is zero - 2**(bits - 1). Scales that are the same for all of K are
multiplied at the end. int8 codes of both are summed in int32. float8 codes of both are multiplied
as such by GPUs that can, but of float32 activations; see ``float8_product`` for what that costs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.triton import codes as float8
from ao_kernels.triton import launch, partials, planes, tiles

MOST_INT8 = (2**31 - 1) // (127 * 127)  # input features; an int32 sum of more could overflow
_GROUP = 8  # rows of tiles that are worked off together; an expert's lie next to each other
_ROOMY = 200 << 10  # bytes of shared memory
_AT_END = 1
_PER_CHUNK = 2


@triton.jit
def expert_of(offsets, tile, T, E, BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr):
    """The expert that a row of tiles belongs to, its first token and the end of the expert's.

    Expert E has the rows of no expert. Past the last tile, both rows are 0. EXPERTS is a power of
    two above E.
    """
    e = tl.arange(0, EXPERTS)
    end = tl.load(offsets + e, mask=e < E, other=T)
    begin = tl.load(offsets + e - 1, mask=(e > 0) & (e <= E), other=0)
    begin = tl.where(e <= E, tl.minimum(begin, T), T)
    end = tl.minimum(end, T)
    n_tiles = (tl.maximum(end - begin, 0) + BLOCK_M - 1) // BLOCK_M
    upto = tl.cumsum(n_tiles, 0)
    expert = tl.sum((upto <= tile).to(tl.int32), 0)
    here = e == expert
    first = tl.sum(tl.where(here, begin + (tile - upto + n_tiles) * BLOCK_M, 0), 0)
    return expert, first, tl.sum(tl.where(here, end, 0), 0)


@triton.jit
def _bits_of(rows, k, inside, row_bytes, BITS: tl.constexpr):
    """Codes k of rows that are streams of bits."""
    at = k * BITS
    byte = at // 8
    low = tl.load(rows + byte[None, :], mask=inside[None, :], other=0).to(tl.int16)
    if 8 % BITS != 0:
        there = (inside & (byte + 1 < row_bytes))[None, :]
        high = tl.load(rows + byte[None, :] + 1, mask=there, other=0).to(tl.int16)
        low |= high << 8
    return (low.to(tl.int32) & 0xFFFF) >> (at % 8)[None, :] & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["T", "steps", "tiles_m"])
def _grouped_product(
    x,
    x_scale,
    codes,
    scale,
    zero,
    offsets,
    bias,
    y,
    T,
    E,
    N,
    K,
    block_n,
    block_k,
    chunks_per_block,
    n_chunks,
    steps,
    tiles_m,
    x_stride,
    x_scale_stride,
    row_bytes,
    scale_expert_stride,
    scale_stride,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,  # of packed codes; 0: codes are int8 or float8
    MANTISSA: tl.constexpr,  # of float8 codes; 0: they are integers
    X_MANTISSA: tl.constexpr,
    NATIVE: tl.constexpr,
    X_SCALES: tl.constexpr,  # 0: x are not codes; else when their scales are multiplied
    BLOCKS: tl.constexpr,  # scales or zeros of the weight differ along K
    FAST: tl.constexpr,  # codes of both are multiplied as they are
    WIDEN: tl.constexpr,
    PLANES: tl.constexpr,
    OPERAND: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EXPERTS: tl.constexpr,  # 1: there are no offsets
):
    split = tl.program_id(1)
    tile_m, tile_n = tiles.place(tl.program_id(0), tiles_m, tl.cdiv(N, BLOCK_N), GROUP)
    if EXPERTS == 1:
        expert, first, stop = tl.zeros((), tl.int32), tile_m * BLOCK_M, T
    else:
        expert, first, stop = expert_of(offsets, tile_m, T, E, BLOCK_M, EXPERTS)
        if first >= stop:
            return
    m = first + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y += split.to(tl.int64) * T * N
    if expert == E:
        nothing = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        partials.store_tile(nothing, bias, y, m, n, stop, N, False)
        return
    row_m = tl.minimum(m, stop - 1).to(tl.int64)  # rows outside repeat the last and are not stored
    row_n = tl.minimum(n, N - 1)
    x_rows = x + row_m[:, None] * x_stride
    expert = expert.to(tl.int64)
    codes_rows = codes + (expert * N + row_n.to(tl.int64))[:, None] * row_bytes
    at = expert * scale_expert_stride + (row_n // block_n).to(tl.int64) * scale_stride
    scale_rows = scale + at
    x_scales = x_scale
    if X_SCALES > 0:
        x_scales = x_scale + row_m * x_scale_stride
    k = tl.arange(0, BLOCK_K)
    byte = tl.arange(0, BLOCK_K // 2)

    acc_NM = tl.zeros((BLOCK_N, BLOCK_M), SUM)
    for chunk in range(split * steps, min(split * steps + steps, n_chunks)):
        block = chunk // chunks_per_block
        start = block * block_k + (chunk % chunks_per_block) * BLOCK_K
        end = min(block * block_k + block_k, K)
        inside = start + k < end
        if EVEN:
            start = tl.multiple_of(start, BLOCK_K)
            x_MK = tl.load(x_rows + start + k[None, :])
        else:
            x_MK = tl.load(x_rows + start + k[None, :], mask=inside[None, :], other=0)
        if BITS == 4:
            half = codes_rows + start // 2 + byte[None, :]
            if EVEN:
                w_NK = tl.load(half)
            else:
                there = start // 2 + byte < tl.cdiv(end, 2)
                w_NK = tl.load(half, mask=there[None, :], other=0)
        elif BITS > 0:
            w_NK = _bits_of(codes_rows, start + k, inside, row_bytes, BITS)
        elif EVEN:
            w_NK = tl.load(codes_rows + start + k[None, :])
        else:
            w_NK = tl.load(codes_rows + start + k[None, :], mask=inside[None, :], other=0)

        if not FAST:
            if X_SCALES > 0:
                x_MK = float8.values_of(x_MK, X_MANTISSA, NATIVE, OPERAND)
            elif WIDEN:
                x_MK = x_MK.to(tl.float32)
        if BLOCKS:
            sum_NM = tl.zeros((BLOCK_N, BLOCK_M), SUM)
        else:
            sum_NM = acc_NM
        if BITS == 4:  # even and odd features apart: codes stay where they were loaded
            even, odd = tl.split(tl.reshape(x_MK, (BLOCK_M, BLOCK_K // 2, 2)))
            low = float8.integers_of(w_NK & 15, 4, OPERAND)
            high = float8.integers_of(w_NK >> 4, 4, OPERAND)
            sum_NM = planes.multiply(low, even, sum_NM, PLANES, OPERAND)
            sum_NM = planes.multiply(high, odd, sum_NM, PLANES, OPERAND)
        elif FAST and MANTISSA == 0:
            sum_NM = tl.dot(w_NK, tl.trans(x_MK), sum_NM, out_dtype=tl.int32)
        elif FAST:
            x_KM = tl.trans(float8.float8_of(x_MK, X_MANTISSA))
            w_NK = float8.float8_of(w_NK, MANTISSA)
            sum_NM = tl.dot(w_NK, x_KM, sum_NM, max_num_imprecise_acc=BLOCK_K)
        else:
            if BITS > 0:
                w_NK = float8.integers_of(w_NK, BITS, OPERAND)
            elif MANTISSA > 0:
                w_NK = float8.values_of(w_NK, MANTISSA, NATIVE, OPERAND)
            else:
                w_NK = w_NK.to(OPERAND)
            sum_NM = planes.multiply(w_NK, x_MK, sum_NM, PLANES, OPERAND)
        if BLOCKS:
            if HAS_ZERO:
                MIDDLE: tl.constexpr = 1 << (BITS - 1)
                shift = tl.load(zero + at + block).to(tl.float32) - MIDDLE
                sum_NM -= shift[:, None] * tl.sum(x_MK.to(tl.float32), 1)[None, :]
            sum_NM *= tl.load(scale_rows + block).to(tl.float32)[:, None]
            if X_SCALES == 2:
                sum_NM *= tl.load(x_scales + block)[None, :]
            acc_NM += sum_NM
        else:
            acc_NM = sum_NM

    total_NM = acc_NM.to(tl.float32)
    if not BLOCKS:
        total_NM *= tl.load(scale_rows).to(tl.float32)[:, None]
    if X_SCALES == 1:
        total_NM *= tl.load(x_scales)[None, :]
    if HAS_BIAS:
        of_bias = tl.load(bias + expert * N + row_n).to(tl.float32)
        total_NM += tl.where(split == 0, of_bias, 0.0)[:, None]
    partials.store_tile(total_NM, bias, y, m, n, stop, N, False)


class Weight(NamedTuple):
    """Codes (E, N, ...) with scales (E or 1, N / block_n or 1, G) and zeros like them.

    bits: of packed codes; 0 where a code is a byte of its own.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    block_n: int
    block_k: int


class Product(NamedTuple):
    """``parts``: what ``finish`` adds up to y; they are y itself where there is no ``finish``."""

    y: launch.Room
    linear: launch.Launch
    parts: launch.Room
    finish: launch.Launch | None

    def __call__(
        self,
        x: Tensor,
        x_scale: Tensor | None,
        w: Weight,
        offsets: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        y = self.y.like(x)
        if self.finish is None:
            self.linear(x, x_scale, w.codes, w.scale, w.zero, offsets, bias, y)
            return y
        parts = self.parts.like(x)
        self.linear(x, x_scale, w.codes, w.scale, w.zero, offsets, bias, parts)
        self.finish(parts, None, None, None, y)
        return y


def tile_of(
    M: int,
    K: int,
    operand: torch.dtype,
    x_scales: str | None,
    *,
    fast: bool,
    bits: int,
    roomy: bool,
) -> tiles.Tile:
    """For M tokens an expert, on average; ``operand``: what activations are when they are
    multiplied; ``x_scales``: of :func:`product`; ``fast``: codes of both are multiplied as such;
    ``roomy``: on a multiprocessor with the shared memory of Hopper's.

    The fastest of five to nine tiles each for 1 to 16 tokens, 64, and 256 to 1024, of Mixtral's and
    Qwen3's experts on an H200 (benchmarks/tune_grouped.py). Not measured: less shared memory,
    float32, other than 4 or 8 bits, and numbers of tokens in between. Codes of other than 4 bits
    are unpacked in steps of 64: in steps of 128 a tile of 64 x 16 spills 168 bytes a thread (3
    bits, triton 3.9, sm_90).
    """
    some = 32 if M <= 24 else 64
    if fast:
        if M <= 16:
            wide = roomy and K >= 4096
            return tiles.Tile(16, 128, 256, 8, 3, 2) if wide else tiles.Tile(16, 128, 128, 4, 4, 2)
        if M > 128 and x_scales == "int8" and roomy:
            return tiles.Tile(128, 256, 128, 8, 3, 1)
        return tiles.Tile(some, 128, 128, 4, 4, 2)
    if operand == torch.float32:
        return tiles.Tile(16 if M <= 10 else 32, 64, 64, 4, 3, 2)
    if bits not in (0, 4):
        few = M <= 10
        return tiles.Tile(16 if few else some, 64, 64, 4, 3, 4 if few else 2)
    if M <= 16:
        return tiles.Tile(16, 128 if bits == 4 else 64, 128, 4, 3, 4)
    if bits == 4:
        if M <= 128:
            return tiles.Tile(some, 128, 128, 4, 3, 2)
        wide = roomy and x_scales is not None
        return tiles.Tile(128, 128, 128, 8, 3, 1) if wide else tiles.Tile(128, 128, 64, 8, 4, 1)
    if M <= 128:
        return tiles.Tile(some, 128, 128, 8, 4, 1) if roomy else tiles.Tile(some, 64, 128, 4, 3, 2)
    return tiles.Tile(256 if roomy else 128, 128, 64, 8, 3, 1)


def rows_of(T: int, E: int) -> int:
    """Of an expert that has any, when T rows are spread evenly."""
    return triton.cdiv(T, min(T, E))


def most_tiles(T: int, E: int, block_m: int) -> int:
    """Rows of tiles that any sizes of E experts, and rows of none, can need."""
    groups = min(T, E + 1)  # with rows
    return (T - groups) // block_m + groups


def product(
    x_TK: Tensor,
    x_scales: str | None,
    w: Weight,
    offsets: Tensor | None,
    bias: Tensor | None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Product:
    """The product with contiguous weights; without ``offsets`` of one expert, which has all rows.

    x_scales: of the codes of x_TK, which take its place and are contiguous: "int8" (T,), or of
    float8 "row" (T,), "tensor" (T,) or "block" (T, G). None: x itself is multiplied. float8 codes
    are e4m3, and results in the dtype of x_TK, unless ``out_dtype`` says that x_TK are the codes:
    these of any float8, which are multiplied as such where a GPU can.
    """
    (T, K), (E, N), device = x_TK.shape, w.codes.shape[:2], x_TK.device
    M = rows_of(T, E)
    n_blocks = w.scale.shape[2]
    block_n, block_k = min(w.block_n, N), K if n_blocks == 1 else w.block_k
    coded, native = x_scales is not None, float8.converts_float8(device)
    mantissa = 0 if w.bits else float8.KINDS[w.codes.dtype].mantissa
    x_dtype = None
    if out_dtype is not None:
        x_dtype, as_float8 = x_TK.dtype, native
    else:
        out_dtype = x_TK.dtype
        as_float8 = coded and native and out_dtype != torch.float32 and mantissa == 3
    fast = as_float8 or x_scales == "int8"
    operand = torch.float16 if coded else out_dtype
    roomy = tiles.shared_bytes(device) >= _ROOMY
    tile = tile_of(M, K, operand, x_scales, fast=fast, bits=w.bits, roomy=roomy)
    tile = tile._replace(block_k=min(tile.block_k, max(32, triton.next_power_of_2(block_k))))
    chunks_per_block = triton.cdiv(block_k, tile.block_k)
    whole, rest = divmod(K, block_k)
    n_chunks = whole * chunks_per_block + triton.cdiv(rest, tile.block_k)
    alone = offsets is None
    tiles_m = triton.cdiv(T, tile.block_m) if alone else most_tiles(T, E, tile.block_m)
    splits, steps = tile.split(tiles_m * tile.block_m, N, n_chunks, device)
    per_chunk = x_scales == "block" and n_blocks > 1
    scales = w.scale.shape
    linear = launch.Launch(
        _grouped_product,
        tile.grid(tiles_m * tile.block_m, N, splits),
        (
            T,
            E,
            N,
            K,
            block_n,
            block_k,
            chunks_per_block,
            n_chunks,
            steps,
            tiles_m,
            K if coded else x_TK.stride(0),
            n_blocks if per_chunk else 1,
            w.codes.shape[2],
            0 if scales[0] == 1 else scales[1] * n_blocks,
            0 if scales[1] == 1 else n_blocks,
        ),
        {
            "HAS_ZERO": w.zero is not None,
            "HAS_BIAS": bias is not None,
            "EVEN": K % tile.block_k == 0 and block_k % tile.block_k == 0,
            "GROUP": _GROUP,
            "BITS": w.bits,
            "MANTISSA": mantissa,
            "X_MANTISSA": 3 if x_dtype is None else float8.KINDS[x_dtype].mantissa,
            "NATIVE": native,
            "X_SCALES": 0 if not coded else _PER_CHUNK if per_chunk else _AT_END,
            "BLOCKS": n_blocks > 1 or w.zero is not None,
            "FAST": fast,
            "WIDEN": operand == torch.float32 or tiles.INTERPRETED,
            "PLANES": 3 if operand == torch.float32 else 1,
            "OPERAND": tiles.operand(operand),
            "SUM": tl.int32 if x_scales == "int8" else tl.float32,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "EXPERTS": 1 if alone else triton.next_power_of_2(E + 1),
        },
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        device,
    )
    y = launch.Room.of((T, N), out_dtype)
    if splits == 1:
        return Product(y, linear, y, None)
    parts = launch.Room.of((splits, T, N), torch.float32)
    finish = partials.finish_launch((splits, T, N), device, bias=False)
    return Product(y, linear, parts, finish)
