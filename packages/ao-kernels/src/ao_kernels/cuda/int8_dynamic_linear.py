"""int8 linear with int8 activations in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.byte_product import ANY, refusal
from ao_kernels.ops.int8_dynamic_linear import int8_dynamic_linear


@int8_dynamic_linear.kernel(
    "cuda", device="cuda", supports=refusal, direct=_cuda.int8_dynamic_linear, few=ANY
)
def _run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    y = _cuda.int8_dynamic_linear(0, aligned(x), aligned(codes), aligned(scale), aligned(bias))
    assert y is not NotImplemented
    return y
