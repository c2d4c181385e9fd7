"""intx weight-only linear of experts in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.intx_grouped_linear import intx_grouped_linear
from ao_kernels.triton import experts
from ao_kernels.triton.grouped_product import Weight


def _weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int
) -> tuple[Weight, str | None]:
    return Weight(codes, scale, zero, bits, 1, group_size), None


_run = experts.register(intx_grouped_linear, _weight)
