"""What the CUDA kernels of linears with 8-bit activations and 8-bit weights accept."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda.weight import common_refusal, tokens_of

ANY = 1 << 31  # number of tokens
FLOAT8_TOKENS = 128  # kLibraryTokens in byte_product.h
_LONGEST = 32768  # kMostColumns in quantize_tokens.h
_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> str | None:
    """Why these arguments (which passed the op's check) are not taken, or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    reason = common_refusal(x, codes, scale, None, bias) or _device_refusal(x.device.index)
    if reason:
        return reason
    K = x.shape[-1]
    if K % 16 or K > _LONGEST:
        return f"x has {K} input features; these kernels take multiples of 16 up to {_LONGEST}"
    return None


def float8_refusal(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> str | None:
    """The same for float8; activation "static": one given scale."""
    reason = refusal(x, codes, scale, bias)
    if reason:
        return reason
    if x.dtype == torch.float32:
        return (
            "x has dtype torch.float32, for which float8 products on the GPU are not exact enough"
        )
    if codes.dtype != torch.float8_e4m3fn:
        return f"codes have dtype {codes.dtype}; the CUDA kernels take torch.float8_e4m3fn"
    M, N = tokens_of(x), codes.shape[0]
    if activation == "block" and scale.shape[1] > 1:
        return None if block_k == 128 else f"block_k is {block_k}; the CUDA kernels take 128"
    if scale.shape[1] > 1 or 1 < block_n < N:
        return "blocks of the weight share scales; the CUDA kernels take them with blocks of x"
    if M > FLOAT8_TOKENS:
        return f"x has {M} tokens; torch._scaled_mm is taken for more than {FLOAT8_TOKENS}"
    return None


# torch.compile asks for reasons too, and cannot look into a compiled function.
@torch.compiler.assume_constant_result
def _device_refusal(index: int) -> str:
    return _cuda.byte_product_refusal(index)
