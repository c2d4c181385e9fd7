"""Linear of float8 activations and float8 weights of experts in Triton."""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops.float8_dynamic_grouped_linear import float8_dynamic_grouped_linear
from ao_kernels.triton import experts
from ao_kernels.triton.grouped_product import Weight


def _weight(
    codes: Tensor, scale: Tensor, block_n: int, block_k: int, activation: str
) -> tuple[Weight, str | None]:
    # A block that is as long as a token is a row.
    kind = "row" if activation == "block" and scale.shape[2] == 1 else activation
    return Weight(codes, scale, None, 0, block_n, block_k), kind


_run = experts.register(float8_dynamic_grouped_linear, _weight)
