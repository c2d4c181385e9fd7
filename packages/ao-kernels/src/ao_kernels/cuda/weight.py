"""What the CUDA kernels of weight-only linears accept, and how arguments are made acceptable."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import dense

_X_DTYPES = (torch.bfloat16, torch.float16)
_BIAS_DTYPES = (torch.float32, *_X_DTYPES)


def refusal(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    """Why no CUDA linear takes these arguments (which passed the op's check), or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take bfloat16 and float16"
    if bias is not None and bias.dtype not in _BIAS_DTYPES:
        return f"bias has dtype {bias.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    if x.shape[-1] == 0:
        return "x has no input features"
    if x.dim() > 16:
        return f"x has {x.dim()} dimensions; the CUDA kernels take up to 16"
    for tensor in (codes, scale, zero, bias):
        if tensor is not None and tensor.device != x.device:
            return f"the arguments are on {x.device} and {tensor.device}"
    K = x.shape[-1]
    M, N = x.numel() // K, codes.shape[0]
    device = x.device.index
    return _cuda.weight_only_refusal(M, N, K, group_size, bits, zero is not None, device) or None


@overload
def aligned(tensor: Tensor) -> Tensor: ...
@overload
def aligned(tensor: None) -> None: ...
def aligned(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, at an address that loads of 16 bytes can start from; None stays None."""
    tensor = dense(tensor)
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()
