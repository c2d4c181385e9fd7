"""What the CUDA kernels of optimizers accept, and how arguments are made acceptable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ao_kernels import registry, triton
from ao_kernels.cuda.weight import _device_refusal
from ao_kernels.ops import moments

_F32, _BF16, _F16 = torch.float32, torch.bfloat16, torch.float16
_PAIRS = ((_F32, _F32), (_BF16, _BF16), (_F16, _F16), (_BF16, _F32), (_F32, _BF16))


# Elements of a call with full state up to which the CUDA kernel is taken: over 0.998e9 bfloat16
# parameters it took 10.9 ms, Triton's 5.5 (H200).
_MOST_FULL = 1 << 24


def _goes_to_triton(params: Sequence[Tensor], state_bits: str) -> bool:
    return (
        state_bits == "32"
        and registry.forced() is None
        and not triton.unavailable
        and sum(p.numel() for p in params if isinstance(p, Tensor)) > _MOST_FULL
    )


def direct_entry(kernel: Callable[..., Any], n_lists: int) -> Callable[..., Any]:
    """The direct entry of a kernel whose first ``n_lists`` arguments are lists, before scalars and
    state_bits."""
    entry = moments.direct_entry(kernel, n_lists)

    def run(token: int, *args: Any) -> Any:
        if len(args) > n_lists + 1 and _goes_to_triton(args[0], args[n_lists + 1]):
            return NotImplemented
        return entry(token, *args)

    return run


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
    if _goes_to_triton(params, state_bits):
        return f"there are more than {_MOST_FULL} elements; with full state Triton's is faster then"
    return _device_refusal(params[0].device.index) or None
