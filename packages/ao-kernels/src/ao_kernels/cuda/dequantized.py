"""Weight-only linears by way of a dequantized weight and torch's own product.

    w_NK = (code - zero) * scale      y_MN = x_MK @ w_NK.T + bias_N

One kernel makes the weight, in memory that torch's allocator lends for the call. With more than 16
tokens it is rounded once to the dtype of x, and float16 weights beyond 65504 become inf, as in any
float16 model: the product of a library is then the fastest there is, and takes so long with many
tokens that the rest shows little. Fewer tokens, which come here in shapes that no other kernel
takes, are multiplied in float32, so that they are as exact as there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as product

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.weight import FEW_TOKENS, common_refusal, tokens_of

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
    block_n: int = 1,
) -> Tensor:
    """x (..., K) -> (..., N); bits 0: int8 or float8 codes; block_n rows of these share scales."""
    few = tokens_of(x) <= FEW_TOKENS
    like = x.new_empty((0, x.shape[-1]), dtype=torch.float32 if few else x.dtype)
    w_NK = _cuda.dequantize(
        like, aligned(codes), aligned(scale), aligned(zero), bits, group_size, block_n
    )
    assert w_NK is not NotImplemented
    if not few and (bias is None or bias.dtype == x.dtype):
        return product(x, w_NK, bias)
    y = product(x.to(w_NK.dtype), w_NK).float()
    return (y if bias is None else y + bias.float()).to(x.dtype)
