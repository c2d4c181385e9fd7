"""Weight-only linears by way of a dequantized weight and torch's own product.

    w_NK = (code - zero) * scale, rounded once to the dtype of x      y_MN = x_MK @ w_NK.T + bias_N

One kernel makes the weight, in memory that torch's allocator lends for the call: as much as the
unquantized layer has. With many tokens the product takes so long that this shows little (H200,
14336 x 4096 bfloat16: 35 us beside 604 with 4096 tokens), and a library's product is the fastest
there is. float16 weights beyond 65504 become inf, as in any float16 model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as product

from ao_kernels import _cuda
from ao_kernels.cuda.weight import aligned, common_refusal

_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> str | None:
    """Why these arguments (which passed the op's check) are not taken, or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    return common_refusal(x, codes, scale, zero, bias)


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    """x (..., K) -> (..., N); bits 0: int8 codes."""
    like = x.new_empty((0, x.shape[-1]))
    w_NK = _cuda.dequantize(like, aligned(codes), aligned(scale), aligned(zero), bits, group_size)
    assert w_NK is not NotImplemented
    if bias is None or bias.dtype == x.dtype:
        return product(x, w_NK, bias)
    return (product(x, w_NK).float() + bias.float()).to(x.dtype)
