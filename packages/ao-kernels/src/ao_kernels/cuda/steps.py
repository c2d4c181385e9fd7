"""What the CUDA kernels of optimizers accept, and how arguments are made acceptable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ao_kernels.cuda.weight import _device_refusal

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
_PAIRS = ((_F32, _F32), (_BF16, _BF16), (_F16, _F16), (_BF16, _F32), (_F32, _BF16))


def refusal(
    params: Sequence[Tensor], grads: Sequence[Tensor], state_bits: str, block_size: int
) -> str | None:
    """Why no CUDA kernel takes a step (whose arguments passed the op's check), or None."""
    if not params:
        return "there are no parameters"
    if (params[0].dtype, grads[0].dtype) not in _PAIRS:
        pairs = ", ".join(f"{p} with {g}" for p, g in _PAIRS)
        return (
            f"parameters are {params[0].dtype} with gradients of {grads[0].dtype}; the CUDA "
            f"kernels take {pairs}"
        )
    if state_bits != "32" and (block_size & (block_size - 1) or block_size > 256):
        return f"block_size is {block_size}; the CUDA kernels take powers of two up to 256"
    return _device_refusal(params[0].device.index) or None
