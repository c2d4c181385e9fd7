"""Activations to float8 or int8, one scale a row.

    x_MK ~ codes_MK * scale_M

M tokens, K features of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import layout
from ao_kernels.registry import op


@op("(Tensor x, ScalarType dtype) -> (Tensor, Tensor)", tensors=())
def quantize_rowwise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize each row of ``x``, that is each token, with a scale of its own.

    float8  s = max(amax|x| / max8, tiny);  code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny);   code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md.

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
        reference, and is rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.

    Returns:
        codes (..., K) of ``dtype``, contiguous, and scale (..., 1) float32. A row that holds NaN or
        inf has a NaN scale, and NaN codes, or zero codes of int8. Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    x_MK = x.detach().reshape(layout.count_rows(x), x.shape[-1])
    codes, scale = quantize_blocks(x_MK, block=(1, x.shape[-1]), dtype=dtype)
    return codes.contiguous().view(x.shape), scale.view(*x.shape[:-1], 1)


@quantize_rowwise.check
def _check(x: Tensor, dtype: torch.dtype) -> None:
    layout.check_activation("quantize_rowwise", x)
    layout.check_code_dtype("quantize_rowwise", dtype)


@quantize_rowwise.fake
def _fake(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
