"""Products with 16-bit operands whose activations may be float32.

float32 activations are cut into three bfloat16 planes that add up to them exactly.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _plane(x, OPERAND: tl.constexpr):
    """The upper 16 bits of float32 values, and the rest. Truncated, so that nothing overflows."""
    upper = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return upper.to(OPERAND), x - upper


@triton.jit
def multiply(w_NK, x_MK, acc_NM, PLANES: tl.constexpr, OPERAND: tl.constexpr):
    """acc + w @ x.T"""
    x_KM = tl.trans(x_MK)
    if PLANES == 1:
        acc_NM = tl.dot(w_NK, x_KM.to(OPERAND), acc_NM)
    else:
        high, rest = _plane(x_KM, OPERAND)
        middle, low = _plane(rest, OPERAND)
        acc_NM = tl.dot(w_NK, low.to(OPERAND), acc_NM)
        acc_NM = tl.dot(w_NK, middle, acc_NM)
        acc_NM = tl.dot(w_NK, high, acc_NM)
    return acc_NM
