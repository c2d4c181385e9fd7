"""Rows of a float8 table.

    out_iK = c_NK[index_i] * scale[index_i // block_n]

N rows, K columns. A block of block_n x block_k codes shares a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ao_kernels.ops import layout
from ao_kernels.registry import op


@op(
    "(Tensor indices, Tensor codes, Tensor scale, int block_n, int block_k, ScalarType dtype) -> "
    "Tensor",
    tensors=(),
)
def float8_embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    dtype: torch.dtype,
) -> Tensor:
    """The rows of a float8 table that ``indices`` name, dequantized.

    out[i, k] = codes[indices[i], k] * scale[indices[i] // block_n, k // block_k], formed in
    float32 and rounded to ``dtype``

    Args:
        indices: any shape, int32 or int64, each in [0, N).
        codes: (N, K) float8_e4m3fn or float8_e5m2.
        scale: (ceil(N / block_n), ceil(K / block_k)) float32.
        block_n: rows that share a scale; at least N when all do.
        block_k: columns that share a scale: a multiple of 8, or at least K for whole rows.
        dtype: float32, bfloat16, float16 or float64.

    Returns:
        (*indices.shape, K) in ``dtype``; every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        IndexError: an index that is not in [0, N).
        RuntimeError: arguments on different devices.
    """
    i = indices.flatten()
    rows = embedding(i, codes.view(torch.uint8)).view(codes.dtype)  # gathers have no float8
    shared = scale.shape[0] == 1
    row_scale = embedding(torch.zeros_like(i) if shared else i // block_n, scale)
    values = layout.dequantize_float8(rows, row_scale, 1, block_k, torch.float32)
    return values.to(dtype).reshape(*indices.shape, codes.shape[1])


@float8_embedding.check
def _check(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    dtype: torch.dtype,
) -> None:
    layout.check_indices("float8_embedding", indices, dtype)
    layout.check_float8("float8_embedding", codes, scale, block_n, block_k, codes.shape[-1])
    layout.check_devices("float8_embedding", indices, codes=codes, scale=scale)


@float8_embedding.fake
def _fake(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(*indices.shape, codes.shape[1], dtype=dtype)
