"""What the CUDA kernels of weight-only linears accept, and how arguments are made acceptable."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda

_X_DTYPES = (torch.bfloat16, torch.float16)
_BIAS_DTYPES = (torch.float32, *_X_DTYPES)
FEW_TOKENS = 16  # kMostTokens in weight_only_small.h
_LIBRARY_TOKENS = 4096  # kLibraryTokens in weight_only_large.h


def refusal(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
    group_name: str = "group_size",
) -> str | None:
    """Why no CUDA linear of a few tokens takes these arguments (which passed the op's check), or
    None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take bfloat16 and float16"
    reason = common_refusal(x, codes, scale, zero, bias)
    if reason:
        return reason
    K, M = x.shape[-1], tokens_of(x)
    if M > FEW_TOKENS:
        return f"x has {M} tokens; the CUDA kernels take up to {FEW_TOKENS}"
    if K % 32:
        return f"x has {K} input features; the CUDA kernels take multiples of 32"
    if group_size < K and group_size % 32:
        return f"{group_name} is {group_size}; the CUDA kernels take multiples of 32"
    most = _most_token_values(x.device.index)
    if x.numel() > most:
        return f"x has {x.numel()} values; the CUDA kernels take up to {most} on this device"
    if scale.numel() > 2**30:
        return f"scale has {scale.numel()} values; the CUDA kernels take up to {2**30}"
    return None


def many_tokens_refusal(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
    group_name: str = "group_size",
) -> str | None:
    """Why no kernel of more than 16 tokens takes these arguments, or None."""
    if x.dtype != torch.bfloat16:
        return f"x has dtype {x.dtype}; the CUDA kernel of more than 16 tokens takes bfloat16"
    reason = common_refusal(x, codes, scale, zero, bias) or _many_tokens(x.device.index)
    if reason:
        return reason
    K, M = x.shape[-1], tokens_of(x)
    if M >= _LIBRARY_TOKENS:
        return f"x has {M} tokens; from {_LIBRARY_TOKENS} on, dequantizing is faster"
    if K % 32:
        return f"x has {K} input features; the CUDA kernels take multiples of 32"
    if group_size >= K:
        return "zeros go with groups here, not with rows" if zero is not None else None
    if group_size % 128:
        if codes.dtype == torch.float8_e5m2:
            return f"{group_name} is {group_size}; with more than 16 tokens of e5m2 it is 128 * n"
        if group_size not in (32, 64):
            return f"{group_name} is {group_size}; with more than 16 tokens it is 32, 64 or 128 * n"
    wanted = torch.float32 if codes.dtype.is_floating_point else torch.bfloat16
    if scale.dtype != wanted:
        return f"scale has dtype {scale.dtype}; with more than 16 tokens it is {wanted}"
    return None


def common_refusal(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> str | None:
    """What no CUDA kernel of a linear takes, whatever its number of tokens."""
    if bias is not None and bias.dtype not in _BIAS_DTYPES:
        return f"bias has dtype {bias.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    if x.shape[-1] == 0:
        return "x has no input features"
    if x.dim() > 16:
        return f"x has {x.dim()} dimensions; the CUDA kernels take up to 16"
    for tensor in (codes, scale, zero, bias):
        if tensor is not None and tensor.device != x.device:
            return f"the arguments are on {x.device} and {tensor.device}"
    return _device_refusal(x.device.index) or None


def tokens_of(x: Tensor) -> int:
    """Rows of x, which has input features."""
    return x.numel() // x.shape[-1]


# torch.compile asks for reasons too, and cannot look into a compiled function.
@torch.compiler.assume_constant_result
def _device_refusal(index: int) -> str:
    return _cuda.device_refusal(index)


@torch.compiler.assume_constant_result
def _many_tokens(index: int) -> str:
    return _cuda.many_tokens_refusal(index)


@torch.compiler.assume_constant_result
def _most_token_values(index: int) -> int:
    return _cuda.most_token_values(index)
