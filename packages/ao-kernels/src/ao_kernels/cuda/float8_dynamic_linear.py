"""float8 linear with float8 activations in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.byte_product import ANY, float8_refusal
from ao_kernels.ops.float8_dynamic_linear import float8_dynamic_linear


@float8_dynamic_linear.kernel(
    "cuda", device="cuda", supports=float8_refusal, direct=_cuda.float8_dynamic_linear, few=ANY
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale)
    y = _cuda.float8_dynamic_linear(0, *ready, block_n, block_k, activation, aligned(bias))
    assert y is not NotImplemented
    return y
