"""int4 weight-only linear in Triton.

M tokens, N output features, K input features, G groups of input features. A program walks over K
in chunks that never cross a group, so that any group size works, and adds up

    scale[n, g] * (sum_k (code[n, k] - 8) * x[m, k] - (zero[n, g] - 8) * sum_k x[m, k])

over the k of each chunk. Codes less 8 are exact in bfloat16 and float16; sums are float32. A byte
holds the codes of features 2j and 2j+1: the even and the odd features are multiplied apart, which
leaves the codes where they were loaded. float32 activations are cut into three bfloat16 planes that
add up to them exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int4_linear import int4_linear
from ao_kernels.triton import partials, tiles


@triton.jit
def _plane(x, OPERAND: tl.constexpr):
    """The upper 16 bits of float32 values, and the rest. Truncated, so that nothing overflows."""
    upper = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return upper.to(OPERAND), x - upper


@triton.jit
def _multiply(codes_NK, x_MK, acc_NM, PLANES: tl.constexpr, OPERAND: tl.constexpr):
    """acc + codes @ x.T"""
    x_KM = tl.trans(x_MK)
    if PLANES == 1:
        acc_NM = tl.dot(codes_NK, x_KM.to(OPERAND), acc_NM)
    else:
        high, rest = _plane(x_KM, OPERAND)
        middle, low = _plane(rest, OPERAND)
        acc_NM = tl.dot(codes_NK, low.to(OPERAND), acc_NM)
        acc_NM = tl.dot(codes_NK, middle, acc_NM)
        acc_NM = tl.dot(codes_NK, high, acc_NM)
    return acc_NM


@triton.jit(do_not_specialize=["M", "steps"])
def _int4_linear(
    x,
    codes,
    scale,
    zero,
    bias,
    y,
    M,
    N,
    K,
    group_size,
    chunks_per_group,
    n_chunks,
    steps,
    x_stride,
    codes_stride,
    scale_stride,
    HAS_ZERO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
    PLANES: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tiles_m = tl.cdiv(M, BLOCK_M)
    m = (tile % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile // tiles_m) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_n = tl.minimum(n, N - 1).to(tl.int64)  # rows outside repeat the last one and are not stored
    x_rows = x + tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_stride
    codes_rows = codes + row_n[:, None] * codes_stride
    k = tl.arange(0, BLOCK_K)
    byte = tl.arange(0, BLOCK_K // 2)

    acc_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in range(split * steps, min(split * steps + steps, n_chunks)):
        group = chunk // chunks_per_group
        start = group * group_size + (chunk % chunks_per_group) * BLOCK_K
        if EVEN:
            start = tl.multiple_of(start, BLOCK_K)
            packed = tl.load(codes_rows + start // 2 + byte[None, :])
            x_MK = tl.load(x_rows + start + k[None, :])
        else:
            stop = min(group * group_size + group_size, K)
            inside = start // 2 + byte < tl.cdiv(stop, 2)
            packed = tl.load(codes_rows + start // 2 + byte[None, :], mask=inside[None, :], other=0)
            x_MK = tl.load(x_rows + start + k[None, :], mask=(start + k < stop)[None, :], other=0.0)
        if WIDEN:
            x_MK = x_MK.to(tl.float32)
        even, odd = tl.split(tl.reshape(x_MK, (BLOCK_M, BLOCK_K // 2, 2)))
        low = ((packed & 15).to(tl.int8) - 8).to(OPERAND)
        high = ((packed >> 4).to(tl.int8) - 8).to(OPERAND)
        sum_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        sum_NM = _multiply(low, even, sum_NM, PLANES, OPERAND)
        sum_NM = _multiply(high, odd, sum_NM, PLANES, OPERAND)
        if HAS_ZERO:
            x_sum = tl.sum(even.to(tl.float32), 1) + tl.sum(odd.to(tl.float32), 1)
            shift = tl.load(zero + row_n * scale_stride + group).to(tl.float32) - 8.0
            sum_NM -= shift[:, None] * x_sum[None, :]
        acc_NM += tl.load(scale + row_n * scale_stride + group).to(tl.float32)[:, None] * sum_NM

    if SPLIT:
        partials.store_part(acc_NM, y, split, m, n, M, N)
    else:
        partials.store_tile(acc_NM, bias, y, m, n, M, N, HAS_BIAS)


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return tiles.refusal(x, bias, codes, scale, zero)


def _shape(M: int, dtype: torch.dtype, group_size: int) -> tuple[int, ...]:
    """BLOCK_M, BLOCK_N, BLOCK_K, warps, stages."""
    block_k = min(128, max(32, triton.next_power_of_2(group_size)))
    if M <= 16:
        return 16, 32, block_k, 4, 4
    if M <= 64 or dtype == torch.float32:
        return 32 if M <= 32 else 64, 64, block_k, 4, 3
    return 128, 128, min(block_k, 64), 8, 3


@int4_linear.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    x_MK, codes = tiles.rows(x), codes.contiguous()
    scale = scale.resolve_neg().contiguous()
    (M, K), N = x_MK.shape, codes.shape[0]
    y = x.new_empty((*x.shape[:-1], N))
    if y.numel() == 0:
        return y
    group_size = min(group_size, K)
    shape = _shape(M, x.dtype, group_size)
    chunks_per_group = triton.cdiv(group_size, shape[2])
    whole, rest = divmod(K, group_size)
    n_chunks = whole * chunks_per_group + triton.cdiv(rest, shape[2])
    cut = tiles.cut(M, N, n_chunks, x.device, tiles=shape)
    y_MN = y.view(M, N)
    into = y_MN if cut.splits == 1 else partials.new_parts(cut.splits, y_MN, torch.float32)
    grid = (triton.cdiv(M, cut.block_m) * triton.cdiv(N, cut.block_n), cut.splits)
    with tiles.on(x.device):
        _int4_linear[grid](
            x_MK,
            codes,
            scale,
            dense(zero),
            dense(bias),
            into,
            M,
            N,
            K,
            group_size,
            chunks_per_group,
            n_chunks,
            cut.steps,
            x_MK.stride(0),
            codes.stride(0),
            tiles.row_stride(scale),
            HAS_ZERO=zero is not None,
            HAS_BIAS=bias is not None,
            SPLIT=cut.splits > 1,
            EVEN=K % cut.block_k == 0 and group_size % cut.block_k == 0,
            WIDEN=x.dtype == torch.float32 or tiles.INTERPRETED,
            PLANES=3 if x.dtype == torch.float32 else 1,
            OPERAND=tiles.operand(x.dtype),
            BLOCK_M=cut.block_m,
            BLOCK_N=cut.block_n,
            BLOCK_K=cut.block_k,
            num_warps=cut.warps,
            num_stages=cut.stages,
            enable_fp_fusion=True,
        )
        if cut.splits > 1:
            partials.finish(into, y_MN, bias=dense(bias))
    return y
