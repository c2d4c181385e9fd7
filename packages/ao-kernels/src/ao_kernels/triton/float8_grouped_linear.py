"""float8 weight-only linear of experts in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.float8_grouped_linear import float8_grouped_linear
from ao_kernels.triton import experts
from ao_kernels.triton.grouped_product import Weight


def _weight(codes: Tensor, scale: Tensor, block_n: int, block_k: int) -> tuple[Weight, str | None]:
    return Weight(codes, scale, None, 0, block_n, block_k), None


_run = experts.register(float8_grouped_linear, _weight)
