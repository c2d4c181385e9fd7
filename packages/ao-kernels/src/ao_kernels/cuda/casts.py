"""What the CUDA kernels of casts in both directions accept."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.cuda import weight
from ao_kernels.ops.layout import FLOAT8_DTYPES

_X_DTYPES = (torch.bfloat16, torch.float16)
_MOST = 2**30  # rows, columns, and tiles of a matrix
_MOST_MATRICES = 2**16 - 1
_TILE = 128
_PIECE = 8  # elements of 16 bytes


def refusal(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the kernels do not take x (M, K) or (E, M, K), as it lies, to codes of a dtype."""
    if dtype not in FLOAT8_DTYPES:
        return f"codes are {dtype}; the CUDA kernels make float8"
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take bfloat16 and float16"
    if x.numel() == 0:
        return "there are no values"
    (M, K), strides = x.shape[-2:], x.stride()
    if strides[-1] != 1 and strides[-2] != 1:
        return "neither the rows nor the columns of x lie in one piece"
    pieces, apart = (K, strides[-2]) if strides[-1] == 1 else (M, strides[-1])
    if pieces % _PIECE or apart % _PIECE or (x.dim() == 3 and strides[0] % _PIECE):
        return f"x is not made of pieces of 16 bytes: {tuple(x.shape)} with strides {strides}"
    tiles = (-(-M // _TILE) + 1) * (-(-K // _TILE) + 1)
    if max(M, K, tiles) >= _MOST or (x.dim() == 3 and x.shape[0] > _MOST_MATRICES):
        return f"x is {tuple(x.shape)}, which is too large for the CUDA kernels"
    return weight._device_refusal(x.device.index) or None


def ready(x: Tensor) -> Tensor:
    """x, whose memory begins at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
