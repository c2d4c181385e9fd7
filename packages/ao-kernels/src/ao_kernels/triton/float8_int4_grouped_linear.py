"""Linear of float8 activations and int4 weights of experts in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.float8_int4_grouped_linear import float8_int4_grouped_linear
from ao_kernels.triton import experts
from ao_kernels.triton.grouped_product import Weight


def _weight(
    codes: Tensor, scale: Tensor, zero: Tensor | None, group_size: int
) -> tuple[Weight, str | None]:
    return Weight(codes, scale, zero, 4, 1, group_size), "row"


_run = experts.register(float8_int4_grouped_linear, _weight)
