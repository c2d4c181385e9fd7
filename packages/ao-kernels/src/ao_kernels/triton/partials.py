"""The end of a linear: sum of the parts * scales + bias.

S splits of K, M tokens, N output features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256  # small: the loads of all parts are in flight together


@triton.jit
def store_tile(total, bias, y, m, n, M, N, HAS_BIAS: tl.constexpr):
    """y[m, n] = total[n, m] + bias[n] for a (BLOCK_N, BLOCK_M) float32 tile."""
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    at = y + m.to(tl.int64)[None, :] * N + n[:, None]
    tl.store(at, total.to(y.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


@triton.jit
def store_part(part, parts, split, m, n, M, N):
    """parts[split, m, n] = part[n, m], in the dtype of the parts."""
    at = parts + (split.to(tl.int64) * M + m.to(tl.int64))[None, :] * N + n[:, None]
    tl.store(at, part.to(parts.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


@triton.jit(do_not_specialize=["size"])
def _finish(
    parts,
    token_scale,
    weight_scale,
    bias,
    y,
    size,
    N,
    weight_stride,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    part = parts + at
    total = tl.load(part, mask=inside, other=0)
    for _ in tl.static_range(1, SPLITS):
        part += size
        total += tl.load(part, mask=inside, other=0)
    total = total.to(tl.float32)
    m, n = at // N, at % N
    if SCALED:
        total *= tl.load(weight_scale + n * weight_stride, mask=inside, other=0.0).to(tl.float32)
        total *= tl.load(token_scale + m, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


def finish(
    parts_SMN: Tensor,
    y_MN: Tensor,
    *,
    bias: Tensor | None,
    token_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
    weight_stride: int = 0,
) -> None:
    """y = sum of the parts * weight_scale[n] * token_scale[m], where these are given, + bias[n]."""
    splits, M, N = parts_SMN.shape
    _finish[(triton.cdiv(M * N, _BLOCK),)](
        parts_SMN,
        token_scale,
        weight_scale,
        bias,
        y_MN,
        M * N,
        N,
        weight_stride,
        SPLITS=splits,
        SCALED=token_scale is not None,
        HAS_BIAS=bias is not None,
        BLOCK=_BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )


def new_parts(splits: int, y_MN: Tensor, dtype: torch.dtype) -> Tensor:
    """(S, M, N) of ``dtype``, to be filled."""
    return y_MN.new_empty((splits, *y_MN.shape), dtype=dtype)
