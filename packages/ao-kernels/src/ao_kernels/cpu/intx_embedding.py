"""Rows of a table of 1- to 8-bit codes in the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _C
from ao_kernels.cpu import rows
from ao_kernels.cpu.weight import dense
from ao_kernels.ops.intx_embedding import intx_embedding


def _supports(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> str | None:
    return rows.refusal(indices, codes, dtype)


@intx_embedding.kernel("cpu", device="cpu", supports=_supports, direct=_C.intx_embedding)
def _run(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    out = _C.intx_embedding(
        torch.get_num_threads(),
        dense(indices),
        dense(codes),
        dense(scale),
        dense(zero),
        bits,
        group_size,
        length,
        dtype,
    )
    return rows.checked(out, indices, codes)
