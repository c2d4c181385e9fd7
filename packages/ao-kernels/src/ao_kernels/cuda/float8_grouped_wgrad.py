"""Products over the tokens of each expert in the compiled CUDA extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.experts import product_refusal
from ao_kernels.ops.float8_grouped_wgrad import float8_grouped_wgrad


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return product_refusal(a, b, ends)


@float8_grouped_wgrad.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.float8_grouped_wgrad
)
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    left, right = (aligned(a), aligned(a_scale)), (aligned(b), aligned(b_scale))
    y = _cuda.float8_grouped_wgrad(0, *left, *right, aligned(ends), out_dtype, fast_accum)
    assert y is not NotImplemented
    return y
