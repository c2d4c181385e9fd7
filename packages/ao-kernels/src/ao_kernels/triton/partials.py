"""The end of a linear: sum of the parts * scales + bias.

S splits of K, M tokens, N output features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ao_kernels.triton import launch

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


def finish_launch(
    parts: tuple[int, int, int],
    device: torch.device,
    *,
    bias: bool,
    scaled: bool = False,
    weight_stride: int = 0,
) -> launch.Launch:
    """Launch with parts (S, M, N), token_scale (M,), weight_scale, bias and y (M, N).

    y = sum of the parts * weight_scale[n] * token_scale[m], where ``scaled``, + bias[n]
    """
    splits, M, N = parts
    return launch.Launch(
        _finish,
        (triton.cdiv(M * N, _BLOCK),),
        (M * N, N, weight_stride),
        {"SPLITS": splits, "SCALED": scaled, "HAS_BIAS": bias, "BLOCK": _BLOCK},
        {"num_warps": 4, "enable_fp_fusion": True},
        device,
    )
