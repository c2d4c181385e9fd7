"""Rows of an int8 table in the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _C
from ao_kernels.cpu import rows
from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int8_embedding import int8_embedding


def _supports(
    indices: Tensor, codes: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype
) -> str | None:
    return rows.refusal(indices, codes, dtype)


@int8_embedding.kernel("cpu", device="cpu", supports=_supports, direct=_C.int8_embedding)
def _run(
    indices: Tensor, codes: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype
) -> Tensor:
    out = _C.int8_embedding(
        torch.get_num_threads(), dense(indices), dense(codes), dense(scale), group_size, dtype
    )
    return rows.checked(out, indices, codes)
