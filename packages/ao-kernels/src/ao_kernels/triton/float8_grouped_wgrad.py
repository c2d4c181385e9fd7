"""Products over the tokens of each expert: torch._scaled_grouped_mm, or a kernel of our own.

P places of tokens, sorted by expert; N rows of a, K rows of b, E experts. A program computes a tile
of one expert's result and walks over the places of this expert.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.float8_grouped_wgrad import float8_grouped_wgrad
from ao_kernels.triton import codes, grouped_codes, launch, tiles

_TILE = 128
_ZEROS = 4096
_PRODUCTS = grouped_codes.Products()


@triton.jit
def _zero_empty(y, ends, size, BLOCK: tl.constexpr):
    """The results of experts without places become 0."""
    expert = tl.program_id(1)
    end = tl.load(ends + expert)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    if end <= begin:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        zeros = tl.zeros((BLOCK,), y.dtype.element_ty)
        tl.store(y + expert.to(tl.int64) * size + at, zeros, mask=at < size)


@triton.jit(do_not_specialize=["P"])
def _grouped_wgrad(
    a,
    a_scale,
    b,
    b_scale,
    ends,
    y,
    P,
    N,
    K,
    tiles_k,
    a_stride,
    b_stride,
    A_MANTISSA: tl.constexpr,
    B_MANTISSA: tl.constexpr,
    NATIVE: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    tile, expert = tl.program_id(0), tl.program_id(1)
    n = (tile // tiles_k) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tile % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    end = tl.minimum(tl.load(ends + expert), P)
    begin = tl.minimum(tl.load(ends + expert - 1, mask=expert > 0, other=0), P)
    p = tl.arange(0, BLOCK_P)
    a_rows = a + tl.minimum(n, N - 1).to(tl.int64)[:, None] * a_stride
    b_rows = b + tl.minimum(k, K - 1).to(tl.int64)[:, None] * b_stride
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(begin, end, BLOCK_P):
        there = (start + p < end)[None, :]
        a_NP = tl.load(a_rows + start + p[None, :], mask=there, other=0)
        b_KP = tl.load(b_rows + start + p[None, :], mask=there, other=0)
        if NATIVE:
            b_PK = tl.trans(codes.float8_of(b_KP, B_MANTISSA))
            a_NP = codes.float8_of(a_NP, A_MANTISSA)
            total = tl.dot(a_NP, b_PK, total, max_num_imprecise_acc=BLOCK_P)
        else:
            b_PK = tl.trans(codes.values_of(b_KP, B_MANTISSA, NATIVE, OPERAND))
            total = tl.dot(codes.values_of(a_NP, A_MANTISSA, NATIVE, OPERAND), b_PK, total)
    at = expert.to(tl.int64)
    total *= tl.load(a_scale + at * N + n, mask=n < N, other=0.0)[:, None]
    total *= tl.load(b_scale + at * K + k, mask=k < K, other=0.0)[None, :]
    if end <= begin:
        total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)  # whatever the scales are
    to = y + (at * N + n)[:, None] * K + k[None, :]
    there = (n < N)[:, None] & (k < K)[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=there)


def _library_supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return grouped_codes.library_refusal(a, b, len(ends), out_dtype)


@float8_grouped_wgrad.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_PRODUCTS.direct),  # for the kernel below, too
)
def _run_library(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    size = a.shape[0] * b.shape[0]
    zero_empty = launch.Launch(
        _zero_empty,
        (triton.cdiv(size, _ZEROS), ends.shape[0]),
        (size,),
        {"BLOCK": _ZEROS},
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
        a.device,
    )

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, ends: Tensor) -> Tensor:
        y = torch._scaled_grouped_mm(
            a,
            b.t(),
            a_scale.view(-1),
            b_scale.view(-1),
            ends,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast_accum,
        )
        zero_empty(y, ends)
        return y

    given = (a, a_scale, b, b_scale, ends)
    return _PRODUCTS.start(multiply, given, grouped_codes.contiguous(given), out_dtype, fast_accum)


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return None


@float8_grouped_wgrad.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return float8_grouped_wgrad.reference(a, a_scale, b, b_scale, ends, out_dtype, fast_accum)
    given = (a, a_scale, b, b_scale, ends)
    (N, P), K, E = a.shape, b.shape[0], ends.shape[0]
    tiles_k, native = triton.cdiv(K, _TILE), codes.converts_float8(a.device)
    product = launch.Launch(
        _grouped_wgrad,
        (triton.cdiv(N, _TILE) * tiles_k, E),
        (P, N, K, tiles_k, P, P),
        {
            "A_MANTISSA": codes.KINDS[a.dtype].mantissa,
            "B_MANTISSA": codes.KINDS[b.dtype].mantissa,
            "NATIVE": native,
            "OPERAND": tiles.operand(torch.float16),
            "BLOCK_N": _TILE,
            "BLOCK_K": _TILE,
            "BLOCK_P": _TILE if native else 64,
        },
        {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True},
        a.device,
    )
    room = launch.Room.of((E, N, K), out_dtype or torch.bfloat16)

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, ends: Tensor) -> Tensor:
        y = room.like(a)
        product(a, a_scale, b, b_scale, ends, y)
        return y

    return _PRODUCTS.start(multiply, given, grouped_codes.contiguous(given), out_dtype, fast_accum)
