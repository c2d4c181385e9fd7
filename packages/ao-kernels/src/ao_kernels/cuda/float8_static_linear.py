"""float8 linear with float8 activations of a given scale in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.byte_product import ANY, float8_refusal
from ao_kernels.ops.float8_static_linear import float8_static_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> str | None:
    if x_scale.device != x.device:
        return f"the arguments are on {x.device} and {x_scale.device}"
    return float8_refusal(x, codes, scale, block_n, block_k, "static", bias)


@float8_static_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.float8_static_linear, few=ANY
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale), aligned(x_scale)
    y = _cuda.float8_static_linear(0, *ready, block_n, block_k, aligned(bias))
    assert y is not NotImplemented
    return y
