"""int4 weight-only linear in Triton.

M tokens, N output features, K input features, G groups of input features. A program walks over K
in chunks that never cross a group, so that any group size works, and adds up

    scale[n, g] * (sum_k (code[n, k] - 8) * x[m, k] - (zero[n, g] - 8) * sum_k x[m, k])

over the k of each chunk. Codes less 8 are exact in bfloat16 and float16; sums are float32. A byte
holds the codes of features 2j and 2j+1: the even and the odd features are multiplied apart, which
leaves the codes where they were loaded. float32 activations are cut into three bfloat16 planes that
add up to them exactly.

float8_int4_linear has activations in float8 codes with a scale a token: the codes are exact in
float16, and the sums are multiplied by the scale before they are rounded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int4_linear import int4_linear
from ao_kernels.triton import codes as float8
from ao_kernels.triton import launch, partials, planes, tiles


@triton.jit(do_not_specialize=["M", "steps"])
def _int4_linear(
    x,
    x_scale,
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
    CODED: tl.constexpr,  # x are float8 codes
    NATIVE: tl.constexpr,
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
    row_m = tl.minimum(m, M - 1).to(tl.int64)
    x_rows = x + row_m[:, None] * x_stride
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
            x_MK = tl.load(x_rows + start + k[None, :], mask=(start + k < stop)[None, :], other=0)
        if CODED:
            x_MK = float8.values_of(x_MK, 3, NATIVE, OPERAND)
        elif WIDEN:
            x_MK = x_MK.to(tl.float32)
        even, odd = tl.split(tl.reshape(x_MK, (BLOCK_M, BLOCK_K // 2, 2)))
        low = float8.integers_of(packed & 15, 4, OPERAND)
        high = float8.integers_of(packed >> 4, 4, OPERAND)
        sum_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        sum_NM = planes.multiply(low, even, sum_NM, PLANES, OPERAND)
        sum_NM = planes.multiply(high, odd, sum_NM, PLANES, OPERAND)
        if HAS_ZERO:
            x_sum = tl.sum(even.to(tl.float32), 1) + tl.sum(odd.to(tl.float32), 1)
            shift = tl.load(zero + row_n * scale_stride + group).to(tl.float32) - 8.0
            sum_NM -= shift[:, None] * x_sum[None, :]
        acc_NM += tl.load(scale + row_n * scale_stride + group).to(tl.float32)[:, None] * sum_NM

    if CODED:
        acc_NM *= tl.load(x_scale + row_m)[None, :]
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


def _tile(M: int, dtype: torch.dtype, group_size: int) -> tiles.Tile:
    """The fastest of the tiles tried: H200, 4096 x 4096, groups of 128, in a CUDA graph, us.

    M = 1: 9.4 (slowest 22.8). M = 64: 13.7 (64 x 64: 16.3). M = 256: 35 (128 x 128: 39).
    """
    block_k = min(128, max(32, triton.next_power_of_2(group_size)))
    if M <= 16:
        return tiles.Tile(16, 128, block_k, 4, 3, 4)
    if dtype == torch.float32:
        return tiles.Tile(32 if M <= 32 else 64, 64, block_k, 4, 3, 4)
    return tiles.Tile(64, 128, block_k, 8, 3, 1)


class Plan(NamedTuple):
    """``parts``: what ``finish`` adds up to y; they are y itself where there is no ``finish``."""

    y: launch.Room
    linear: launch.Launch
    parts: launch.Room
    finish: launch.Launch | None


_PLANS: launch.Plans[Plan] = launch.Plans()


def _key(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), facts(zero), group_size, facts(bias)


def plan_of(
    shape: torch.Size,
    x_MK: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
    *,
    coded: bool = False,
) -> Plan:
    """For :func:`launch_plan` with tensors like these, made ready; ``coded``: with contiguous e4m3
    codes of x_MK and their scales (M,) in its place."""
    (M, K), N, device = x_MK.shape, codes.shape[0], x_MK.device
    group_size = min(group_size, K)
    operand = torch.float16 if coded else x_MK.dtype
    tile = _tile(M, operand, group_size)
    chunks_per_group = triton.cdiv(group_size, tile.block_k)
    whole, rest = divmod(K, group_size)
    n_chunks = whole * chunks_per_group + triton.cdiv(rest, tile.block_k)
    splits, steps = tile.split(M, N, n_chunks, device)
    linear = launch.Launch(
        _int4_linear,
        tile.grid(M, N, splits),
        (
            M,
            N,
            K,
            group_size,
            chunks_per_group,
            n_chunks,
            steps,
            K if coded else x_MK.stride(0),
            codes.stride(0),
            tiles.row_stride(scale),
        ),
        {
            "HAS_ZERO": zero is not None,
            "HAS_BIAS": bias is not None,
            "SPLIT": splits > 1,
            "EVEN": K % tile.block_k == 0 and group_size % tile.block_k == 0,
            "CODED": coded,
            "NATIVE": float8.converts_float8(device),
            "WIDEN": operand == torch.float32 or tiles.INTERPRETED,
            "PLANES": 3 if operand == torch.float32 else 1,
            "OPERAND": tiles.operand(operand),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        device,
    )
    y = launch.Room.of((*shape[:-1], N), x_MK.dtype)
    if splits == 1:
        return Plan(y, linear, y, None)
    parts = launch.Room.of((splits, M, N), torch.float32)
    finish = partials.finish_launch((splits, M, N), device, bias=bias is not None)
    return Plan(y, linear, parts, finish)


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, zero, group_size, bias))
    return NotImplemented if plan is None else launch_plan(plan, x, codes, scale, zero, bias)


@int4_linear.kernel("triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct))
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    shape = x.shape
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*shape[:-1], codes.shape[0]))
    given = (x, codes, scale, zero, bias)
    ready = (tiles.rows(x), codes.contiguous(), dense(scale), dense(zero), dense(bias))
    x_MK, codes, scale, zero, bias = ready
    key = (shape, _key(x_MK, codes, scale, zero, group_size, bias))
    plan = _PLANS.get(key) or _PLANS.keep(key, plan_of(shape, *ready[:4], group_size, bias))
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given[:4], group_size, given[4]), plan)
    return launch_plan(plan, x_MK, codes, scale, zero, bias)


def launch_plan(
    plan: Plan,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    x_scale: Tensor | None = None,
) -> Tensor:
    y = plan.y.like(x)
    if plan.finish is None:
        plan.linear(x, x_scale, codes, scale, zero, bias, y)
        return y
    parts = plan.parts.like(x)
    plan.linear(x, x_scale, codes, scale, zero, bias, parts)
    plan.finish(parts, None, None, bias, y)
    return y
