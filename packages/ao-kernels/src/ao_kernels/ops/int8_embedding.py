"""Rows of an int8 table.

    out_iK = c_NK[index_i] * scale_NG[index_i]

N rows, K columns, G = ceil(K / group_size) groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import dequantize_int8
from ao_kernels.ops import layout
from ao_kernels.registry import op


@op(
    "(Tensor indices, Tensor codes, Tensor scale, int group_size, ScalarType dtype) -> Tensor",
    tensors=(),
)
def int8_embedding(
    indices: Tensor, codes: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype
) -> Tensor:
    """The rows of an int8 table that ``indices`` name, dequantized.

    out[i, k] = codes[indices[i], k] * scale[indices[i], g]

    formed in float32 and rounded to ``dtype``.

    Args:
        indices: any shape, int32 or int64, each in [0, N).
        codes: (N, K) int8.
        scale: (N or 1, G) float32 or bfloat16.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        dtype: float32, bfloat16, float16 or float64.

    Returns:
        (*indices.shape, K) in ``dtype``; every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        IndexError: an index that is not in [0, N).
    """
    rows, row_scale = layout.select_rows(indices, codes, scale)
    return dequantize_int8(rows, row_scale, group_size=group_size, dtype=dtype)


@int8_embedding.check
def _check(
    indices: Tensor, codes: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype
) -> None:
    layout.check_indices("int8_embedding", indices, dtype)
    layout.check_int8("int8_embedding", codes, scale, group_size, codes.shape[-1])
    layout.check_devices("int8_embedding", indices, codes=codes, scale=scale)


@int8_embedding.fake
def _fake(
    indices: Tensor, codes: Tensor, scale: Tensor, group_size: int, dtype: torch.dtype
) -> Tensor:
    return codes.new_empty(*indices.shape, codes.shape[1], dtype=dtype)
