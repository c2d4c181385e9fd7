"""What the CPU kernels of embeddings accept, and the refusal of indices that name no row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(indices: Tensor, codes: Tensor, dtype: torch.dtype) -> str | None:
    """Why no CPU embedding kernel takes these arguments (which passed the op's check), or None."""
    if dtype not in _OUT_DTYPES:
        return f"dtype is {dtype}; the CPU kernels give float32, bfloat16 and float16"
    if codes.numel() == 0:
        return "the table is empty"
    if indices.dim() > 15:
        return f"indices have {indices.dim()} dimensions; the CPU kernels take up to 15"
    return None


def checked(out: Any, indices: Tensor, codes: Tensor) -> Tensor:
    """What the kernel gave for arguments that it supports; IndexError where it refused an index."""
    if out is NotImplemented:
        wrong = indices[(indices < 0) | (indices >= codes.shape[0])].flatten()
        assert len(wrong), "the kernel refused arguments that it supports"
        raise IndexError(f"index {int(wrong[0])} is not a row of a table of {codes.shape[0]} rows")
    return out
