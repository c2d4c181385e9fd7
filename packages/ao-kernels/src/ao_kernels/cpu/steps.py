"""What the CPU kernels of optimizers accept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LONGEST_BLOCK = 4096  # kLongestBlock in step_kernel.h


def refusal(
    params: Sequence[Tensor], grads: Sequence[Tensor], state_bits: str, block_size: int
) -> str | None:
    """Why no CPU kernel takes a step (whose arguments passed the op's check), or None."""
    if not params:
        return "there are no parameters"
    for name, x in (("parameters", params[0]), ("gradients", grads[0])):
        if x.dtype not in _DTYPES:
            return f"{name} are {x.dtype}; the CPU kernels take float32, bfloat16 and float16"
    if state_bits != "32" and block_size > LONGEST_BLOCK:
        return f"block_size is {block_size}; the CPU kernels take up to {LONGEST_BLOCK}"
    return None
