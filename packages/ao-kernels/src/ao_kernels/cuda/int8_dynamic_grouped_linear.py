"""Linear of int8 activations and int8 weights of experts in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.experts import bytes_refusal
from ao_kernels.ops.int8_dynamic_grouped_linear import int8_dynamic_grouped_linear

_MOST = (2**31 - 1) // (127 * 128)  # input features; an int32 sum of more could overflow


def _supports(
    x: Tensor, codes: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None
) -> str | None:
    reason = bytes_refusal(x, codes, scale, offsets, bias)
    if reason is None and x.shape[1] > _MOST:
        reason = f"x has {x.shape[1]} input features; the CUDA kernel takes up to {_MOST}"
    return reason


@int8_dynamic_grouped_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.int8_dynamic_grouped_linear
)
def _run(x: Tensor, codes: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale), aligned(offsets), aligned(bias)
    y = _cuda.int8_dynamic_grouped_linear(0, *ready)
    assert y is not NotImplemented
    return y
