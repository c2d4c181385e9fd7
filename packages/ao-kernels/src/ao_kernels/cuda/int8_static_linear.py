"""int8 linear with int8 activations of a given scale in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.byte_product import ANY, refusal
from ao_kernels.ops.int8_static_linear import int8_static_linear


def _supports(
    x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None
) -> str | None:
    if x_scale.device != x.device:
        return f"the arguments are on {x.device} and {x_scale.device}"
    return refusal(x, codes, scale, bias)


@int8_static_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.int8_static_linear, few=ANY
)
def _run(x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    y = _cuda.int8_static_linear(
        0, aligned(x), aligned(codes), aligned(scale), aligned(x_scale), aligned(bias)
    )
    assert y is not NotImplemented
    return y
