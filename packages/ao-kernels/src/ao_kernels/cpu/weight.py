"""What the CPU kernels of weight-only linears accept, and how arguments are made acceptable."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(x: Tensor, bias: Tensor | None) -> str | None:
    """Why no CPU linear kernel takes these arguments (which passed the op's check), or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CPU kernels take float32, bfloat16 and float16"
    if bias is not None and bias.dtype not in _X_DTYPES:
        return f"bias has dtype {bias.dtype}; the CPU kernels take float32, bfloat16 and float16"
    if x.shape[-1] == 0:
        return "x has no input features"
    if x.dim() > 16:
        return f"x has {x.dim()} dimensions; the CPU kernels take up to 16"
    return None


@overload
def dense(tensor: Tensor) -> Tensor: ...
@overload
def dense(tensor: None) -> None: ...
@overload
def dense(tensor: Tensor | None) -> Tensor | None: ...
def dense(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, with conjugation and negation bits resolved; None stays None."""
    return None if tensor is None else tensor.resolve_neg().contiguous()


@overload
def aligned(tensor: Tensor) -> Tensor: ...
@overload
def aligned(tensor: None) -> None: ...
@overload
def aligned(tensor: Tensor | None) -> Tensor | None: ...
def aligned(tensor: Tensor | None) -> Tensor | None:
    """Contiguous, at an address that loads of 16 bytes can start from; None stays None."""
    tensor = dense(tensor)
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()
