"""Linear of int8 activations and int8 weights of experts in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.int8_dynamic_grouped_linear import int8_dynamic_grouped_linear
from ao_kernels.triton import experts
from ao_kernels.triton.grouped_product import Weight


def _weight(codes: Tensor, scale: Tensor) -> tuple[Weight, str | None]:
    return Weight(codes, scale, None, 0, 1, codes.shape[2]), "int8"


_run = experts.register(int8_dynamic_grouped_linear, _weight)
