"""float8 weight-only linear of experts in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.experts import weight_only_refusal
from ao_kernels.ops.float8_grouped_linear import float8_grouped_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> str | None:
    return weight_only_refusal(x, codes, scale, None, block_k, offsets, bias, "block_k")


@float8_grouped_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.float8_grouped_linear
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale)
    y = _cuda.float8_grouped_linear(0, *ready, block_n, block_k, aligned(offsets), aligned(bias))
    assert y is not NotImplemented
    return y
