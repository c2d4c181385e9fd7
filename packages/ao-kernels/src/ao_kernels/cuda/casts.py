"""What the CUDA kernels of casts in both directions accept."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.cuda import weight
from ao_kernels.ops.layout import FLOAT8_DTYPES

_X_DTYPES = (torch.bfloat16, torch.float16)
_MOST = 2**30  # rows, columns and tiles
_TILE = 128
_PIECE = 8  # elements of 16 bytes


def refusal(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernels do not take x as it lies to codes of a dtype."""
    if dtype not in FLOAT8_DTYPES:
        return f"codes are {dtype}; the CUDA kernels make float8"
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take bfloat16 and float16"
    if x.numel() == 0:
        return "there are no values"
    if x.dim() != 2:
        return "x is of several matrices"
    (M, K), strides = x.shape, x.stride()
    if 1 not in strides:
        return "neither the rows nor the columns of x lie in one piece"
    pieces, apart = (K, strides[0]) if strides[1] == 1 else (M, strides[1])
    if pieces % _PIECE or apart % _PIECE:
        return f"x is not made of pieces of 16 bytes: {tuple(x.shape)} with strides {strides}"
    if max(M, K, (-(-M // _TILE) + 1) * (-(-K // _TILE) + 1)) >= _MOST:
        return f"x is {tuple(x.shape)}, which is too large for the CUDA kernels"
    return weight._device_refusal(x.device.index) or None


def ready(x: Tensor) -> Tensor:
    """x, whose memory begins at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
