"""Scales of rows and of columns in the compiled CUDA extension. Rows alone are left to Triton,
which reads x once, and several matrices, for which it is as fast."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda import casts
from ao_kernels.ops.quantize_rowwise_both import quantize_rowwise_both


def _supports(x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str) -> str | None:
    alone = "rows" if x.stride(-1) == 1 else "columns"
    if outputs == alone:
        return f"{alone} alone take one pass over x in Triton"
    return casts.refusal(x, dtype)


@quantize_rowwise_both.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.quantize_rowwise_both
)
def _run(
    x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = _cuda.quantize_rowwise_both(0, casts.ready(x), dtype, power_of_two, outputs)
    assert found is not NotImplemented
    return found
