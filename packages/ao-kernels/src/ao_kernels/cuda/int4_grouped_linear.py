"""int4 weight-only linear of experts in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.experts import weight_only_refusal
from ao_kernels.ops.int4_grouped_linear import int4_grouped_linear


@int4_grouped_linear.kernel(
    "cuda", device="cuda", supports=weight_only_refusal, direct=_cuda.int4_grouped_linear
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale), aligned(zero)
    y = _cuda.int4_grouped_linear(0, *ready, group_size, aligned(offsets), aligned(bias))
    assert y is not NotImplemented
    return y
