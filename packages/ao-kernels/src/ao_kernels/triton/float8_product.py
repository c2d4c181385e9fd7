"""The product with float8 weights in Triton: what the float8 linears share.

M tokens, N output features, K input features, G blocks of block_k input features. A program walks
over K in chunks that never cross a block and adds up

    scale[n // block_n, g] * x_scale[m, g] * sum_k code[n, k] * x[m, k]

over the k of each chunk. Scales that are the same for all of K are multiplied at the end. x are
float8 codes, with ``x_scale``, or activations as they are, without.

Codes are exact in 16-bit floats: up to 64 tokens, which the bytes of the weights limit, they are
converted, and sums are float32. More tokens of bfloat16 or float16 that were quantized are
multiplied as float8, at twice the rate: the matrix units of sm_89 and sm_90 keep about 14 bits of
such a sum, which is added to a float32 one every 128 input features at the latest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.triton import codes as float8
from ao_kernels.triton import launch, partials, planes, tiles

FEW = 64  # tokens up to which the bytes of the weight limit a linear
_GROUP = 0  # rows of tiles that are worked off together; 0: all
_AT_END = 1
_PER_CHUNK = 2


@triton.jit(do_not_specialize=["M", "steps"])
def _float8_product(
    x,
    x_scale,
    codes,
    scale,
    bias,
    y,
    M,
    N,
    K,
    block_n,
    block_k,
    chunks_per_block,
    n_chunks,
    steps,
    x_stride,
    x_scale_stride,
    n_blocks,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    MANTISSA: tl.constexpr,
    X_MANTISSA: tl.constexpr,
    NATIVE: tl.constexpr,
    X_SCALES: tl.constexpr,  # 0: x are not codes; else when their scales are multiplied
    BLOCKS: tl.constexpr,  # scales of the weight differ along K
    FAST: tl.constexpr,  # float8 operands
    WIDEN: tl.constexpr,
    PLANES: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tile_m, tile_n = tiles.place(tile, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_m = tl.minimum(m, M - 1).to(tl.int64)  # rows outside repeat the last one and are not stored
    row_n = tl.minimum(n, N - 1)
    x_rows = x + row_m[:, None] * x_stride
    codes_rows = codes + row_n.to(tl.int64)[:, None] * K
    scale_rows = scale + (row_n // block_n).to(tl.int64) * n_blocks
    x_scales = x_scale
    if X_SCALES > 0:
        x_scales = x_scale + row_m * x_scale_stride
    k = tl.arange(0, BLOCK_K)

    acc_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in range(split * steps, min(split * steps + steps, n_chunks)):
        block = chunk // chunks_per_block
        start = block * block_k + (chunk % chunks_per_block) * BLOCK_K
        if EVEN:
            start = tl.multiple_of(start, BLOCK_K)
            w_NK = tl.load(codes_rows + start + k[None, :])
            x_MK = tl.load(x_rows + start + k[None, :])
        else:
            inside = start + k < min(block * block_k + block_k, K)
            w_NK = tl.load(codes_rows + start + k[None, :], mask=inside[None, :], other=0)
            x_MK = tl.load(x_rows + start + k[None, :], mask=inside[None, :], other=0)
        if not FAST:
            w_NK = float8.values_of(w_NK, MANTISSA, NATIVE, OPERAND)
            if X_SCALES > 0:
                x_MK = float8.values_of(x_MK, X_MANTISSA, NATIVE, OPERAND)
            elif WIDEN:
                x_MK = x_MK.to(tl.float32)
        if BLOCKS:
            sum_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            if FAST:
                x_KM = tl.trans(float8.float8_of(x_MK, X_MANTISSA))
                sum_NM = tl.dot(float8.float8_of(w_NK, MANTISSA), x_KM, sum_NM)
            else:
                sum_NM = planes.multiply(w_NK, x_MK, sum_NM, PLANES, OPERAND)
            sum_NM *= tl.load(scale_rows + block)[:, None]
            if X_SCALES == 2:
                sum_NM *= tl.load(x_scales + block)[None, :]
            acc_NM += sum_NM
        elif FAST:
            x_KM = tl.trans(float8.float8_of(x_MK, X_MANTISSA))
            w_NK = float8.float8_of(w_NK, MANTISSA)
            acc_NM = tl.dot(w_NK, x_KM, acc_NM, max_num_imprecise_acc=BLOCK_K)
        else:
            acc_NM = planes.multiply(w_NK, x_MK, acc_NM, PLANES, OPERAND)

    if not BLOCKS:
        acc_NM *= tl.load(scale_rows)[:, None]
    if X_SCALES == 1:
        acc_NM *= tl.load(x_scales)[None, :]
    if SPLIT:
        partials.store_part(acc_NM, y, split, m, n, M, N)
    else:
        partials.store_tile(acc_NM, bias, y, m, n, M, N, HAS_BIAS)


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
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        y = self.y.like(x)
        if self.finish is None:
            self.linear(x, x_scale, codes, scale, bias, y)
            return y
        parts = self.parts.like(x)
        self.linear(x, x_scale, codes, scale, bias, parts)
        self.finish(parts, None, None, bias, y)
        return y


def tile_of(M: int, x_dtype: torch.dtype, *, fast: bool, coded: bool) -> tiles.Tile:
    """``coded``: x are float8 codes; ``fast``: they are multiplied as such.

    Not measured yet, but chosen like those of the int4 and int8 linears.
    """
    if fast:
        return tiles.Tile(64, 128, 128, 4, 4, 1)
    if x_dtype == torch.float32 and not coded:
        return tiles.Tile(16, 64, 128, 4, 3, 4) if M <= 16 else tiles.Tile(64, 64, 64, 4, 3, 2)
    if M <= 16:
        return tiles.Tile(16, 64, 256 if coded else 128, 4, 3 if coded else 4, 4)
    if M <= 64:
        return tiles.Tile(32 if M <= 32 else 64, 64, 128, 4, 3, 2)
    return tiles.Tile(128, 128, 64, 8, 3, 1)


def product(
    shape: Sequence[int],
    x_MK: Tensor,
    x_scales: str | None,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Product:
    """The product with contiguous codes (N, K) and scales, for results of (*shape, N).

    x_scales: of the codes of x_MK, which take its place and are contiguous: "tensor" (one), "row"
    (M,) or "block" (M, G). None: x itself is multiplied. Codes are e4m3, and results in the dtype
    of x_MK, unless ``out_dtype`` says that x_MK are the codes: these of any float8, which are
    multiplied as such where a GPU can.
    """
    (M, K), N, device = x_MK.shape, codes.shape[0], x_MK.device
    n_blocks = scale.shape[1]
    block_n, block_k = min(block_n, N), K if n_blocks == 1 else block_k
    coded, native = x_scales is not None, float8.converts_float8(device)
    mantissa = float8.KINDS[codes.dtype].mantissa
    x_dtype: torch.dtype | None
    if out_dtype is not None:
        x_dtype, fast = x_MK.dtype, native
    else:
        out_dtype, x_dtype = x_MK.dtype, torch.float8_e4m3fn if coded else None
        fast = coded and native and M > FEW and x_MK.dtype != torch.float32 and mantissa == 3
    tile = tile_of(M, out_dtype, fast=fast, coded=coded)
    tile = tile._replace(block_k=min(tile.block_k, max(32, triton.next_power_of_2(block_k))))
    chunks_per_block = triton.cdiv(block_k, tile.block_k)
    whole, rest = divmod(K, block_k)
    n_chunks = whole * chunks_per_block + triton.cdiv(rest, tile.block_k)
    splits, steps = tile.split(M, N, n_chunks, device)
    per_chunk = x_scales == "block" and n_blocks > 1
    planes_needed = 3 if out_dtype == torch.float32 and not coded else 1
    linear = launch.Launch(
        _float8_product,
        tile.grid(M, N, splits),
        (
            M,
            N,
            K,
            block_n,
            block_k,
            chunks_per_block,
            n_chunks,
            steps,
            K if coded else x_MK.stride(0),
            0 if x_scales == "tensor" else n_blocks if per_chunk else 1,
            n_blocks,
        ),
        {
            "HAS_BIAS": bias is not None,
            "SPLIT": splits > 1,
            "EVEN": K % tile.block_k == 0 and block_k % tile.block_k == 0,
            "GROUP": _GROUP,
            "MANTISSA": mantissa,
            "X_MANTISSA": 0 if x_dtype is None else float8.KINDS[x_dtype].mantissa,
            "NATIVE": native,
            "X_SCALES": 0 if not coded else _PER_CHUNK if per_chunk else _AT_END,
            "BLOCKS": n_blocks > 1,
            "FAST": fast,
            "WIDEN": planes_needed > 1 or tiles.INTERPRETED,
            "PLANES": planes_needed,
            "OPERAND": tiles.operand(torch.float16 if coded else out_dtype),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        device,
    )
    y = launch.Room.of((*shape, N), out_dtype)
    if splits == 1:
        return Product(y, linear, y, None)
    parts = launch.Room.of((splits, M, N), torch.float32)
    finish = partials.finish_launch((splits, M, N), device, bias=bias is not None)
    return Product(y, linear, parts, finish)
