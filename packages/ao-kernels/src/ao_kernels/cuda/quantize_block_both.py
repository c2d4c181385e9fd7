"""Scales of blocks, in both directions, in the compiled CUDA extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda import casts
from ao_kernels.ops.quantize_block_both import quantize_block_both


def _supports(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> str | None:
    return casts.refusal(x, dtype)


@quantize_block_both.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.quantize_block_both
)
def _run(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    others = dtype, block_rows, block_cols, power_of_two, outputs
    found = _cuda.quantize_block_both(0, casts.ready(x), *others)
    assert found is not NotImplemented
    return found
