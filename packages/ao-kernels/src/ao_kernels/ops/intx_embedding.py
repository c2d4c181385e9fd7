"""Rows of a table of 1- to 8-bit codes.

    out_iK = (code_NK[index_i] - zero_NG[index_i]) * scale_NG[index_i]

N rows, K columns, G = ceil(K / group_size) groups, b bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import dequantize_intx
from ao_core.packing import unpack
from ao_kernels.ops import layout
from ao_kernels.registry import op


@op(
    "(Tensor indices, Tensor codes, Tensor scale, Tensor? zero, int bits, int group_size, "
    "int length, ScalarType dtype) -> Tensor",
    tensors=(),
)
def intx_embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    """The rows of a packed table that ``indices`` name, dequantized.

    out[i, k] = (code[indices[i], k] - zero[indices[i], g]) * scale[indices[i], g]

    formed in float32 and rounded to ``dtype``.

    Args:
        indices: any shape, int32 or int64, each in [0, N).
        codes: (N, ceil(K/8)*bits) uint8: a little-endian bit stream a row.
        scale: (N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 2**(bits-1). May be fractional.
        bits: 1 to 8.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        length: K, which the packed rows alone do not tell.
        dtype: float32, bfloat16, float16 or float64.

    Returns:
        (*indices.shape, K) in ``dtype``; every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        IndexError: an index that is not in [0, N).
    """
    rows, row_scale = layout.select_rows(indices, codes, scale)
    row_zero = None if zero is None else layout.select_rows(indices, codes, zero)[1]
    return dequantize_intx(
        unpack(rows, bits, length),
        row_scale,
        row_zero,
        bits=bits,
        group_size=group_size,
        dtype=dtype,
    )


@intx_embedding.check
def _check(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> None:
    layout.check_indices("intx_embedding", indices, dtype)
    layout.check_intx("intx_embedding", codes, scale, zero, bits, group_size, length)
    layout.check_devices("intx_embedding", indices, codes=codes, scale=scale, zero=zero)


@intx_embedding.fake
def _fake(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(*indices.shape, length, dtype=dtype)
