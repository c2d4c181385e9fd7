"""Tokens of experts, in both directions, in the compiled CUDA extension. Rows alone are left to
Triton, which reads x once."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda import casts
from ao_kernels.cuda.experts import MOST_EXPERTS
from ao_kernels.ops.quantize_grouped_both import quantize_grouped_both


def _supports(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> str | None:
    if outputs == "rows":
        return "rows alone take one pass over x in Triton"
    if x.stride(1) != 1:
        return "tokens do not lie in one piece each"
    if len(offsets) > MOST_EXPERTS:
        return f"there are {len(offsets)} experts; the CUDA kernels take up to {MOST_EXPERTS}"
    return casts.refusal(x, dtype)


@quantize_grouped_both.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.quantize_grouped_both
)
def _run(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    others = dtype, aligned(offsets), power_of_two, outputs
    found = _cuda.quantize_grouped_both(0, casts.ready(x), *others)
    assert found is not NotImplemented
    return found
