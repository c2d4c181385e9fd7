"""intx weight-only linear in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.intx_linear import intx_linear
from ao_kernels.triton import weight_only
from ao_kernels.triton.grouped_product import Weight


def _weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int
) -> Weight:
    return Weight(codes, scale, zero, bits, 1, group_size)


_run = weight_only.register(intx_linear, _weight)
