"""Activations to int8 codes, token by token, in one kernel.

M tokens, K input features, P = K rounded up to the padding.

    s = max(amax(|x|) / 127, FLT_MIN)    code = clamp(round_half_even(x * (1 / s)), -127, 127)

in float32, bit for bit what ``ao_core.numerics.quantize_tokens`` gives on a CPU: divisions are IEEE
divisions (Triton's ``/`` is not), and the product is rounded before it is rounded to an integer, so
the kernel is compiled without fused multiply-add. A token that holds NaN or inf gets zero codes and
a NaN scale.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FLT_MIN = tl.constexpr(2.0**-126)
# Adding it drops the fraction, half to even, of |value| < 2**22.
_ROUNDING = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _quantize_tokens(x, codes, scale, K, padded, x_stride, BLOCK: tl.constexpr):
    m = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        value = tl.load(x + m * x_stride + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        peaks = tl.maximum(peaks, tl.where(value == value, tl.abs(value), float("inf")))
    peak = tl.max(peaks, 0)
    finite = peak < float("inf")
    step = tl.maximum(tl.div_rn(peak, 127.0), _FLT_MIN)
    inverse = tl.div_rn(1.0, step)
    tl.store(scale + m, tl.where(finite, step, float("nan")))
    for start in range(0, padded, BLOCK):
        value = tl.load(x + m * x_stride + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        rounded = (tl.where(finite, value, 0.0) * inverse + _ROUNDING) - _ROUNDING
        code = tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(tl.int8)
        tl.store(codes + m * padded + start + k, code, mask=start + k < padded)


def quantize_tokens(x_MK: Tensor, *, padding: int = 1) -> tuple[Tensor, Tensor]:
    """(M, K) with last stride 1 -> codes (M, P) int8, scale (M,) float32; codes past K are zero."""
    M, K = x_MK.shape
    padded = triton.cdiv(K, padding) * padding
    codes_MP = x_MK.new_empty((M, padded), dtype=torch.int8)
    scale_M = x_MK.new_empty((M,), dtype=torch.float32)
    block = min(4096, triton.next_power_of_2(padded))
    _quantize_tokens[(M,)](
        x_MK,
        codes_MP,
        scale_M,
        K,
        padded,
        x_MK.stride(0),
        BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
        enable_fp_fusion=False,
    )
    return codes_MP, scale_M
