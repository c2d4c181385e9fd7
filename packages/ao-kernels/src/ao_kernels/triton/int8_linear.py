"""int8 weight-only linear in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.int8_linear import int8_linear
from ao_kernels.triton import weight_only
from ao_kernels.triton.grouped_product import Weight


def _weight(codes: Tensor, scale: Tensor, group_size: int) -> Weight:
    return Weight(codes, scale, None, 0, 1, group_size)


_run = weight_only.register(int8_linear, _weight)
