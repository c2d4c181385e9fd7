"""Activations to float8 or int8, one scale for the whole tensor.

x ~ codes * scale
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import layout
from ao_kernels.registry import op


@op("(Tensor x, ScalarType dtype, Tensor? scale=None) -> (Tensor, Tensor)", tensors=())
def quantize_tensorwise(
    x: Tensor, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantize ``x`` with one scale: its own, or the one that is given.

    float8  s = max(amax|x| / max8, tiny);  code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny);   code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md.

    Args:
        x: any shape with a dimension, float32, bfloat16 or float16, any strides. float64 runs the
        reference, and is rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        scale: one float32 element on the device of x: s, taken as it is (a static scale), or None.

    Returns:
        codes like x of ``dtype``, contiguous, and scale () float32, a new tensor. If x holds NaN or
        inf, its own scale is NaN, and codes are NaN, or 0 in int8. With a given scale, inf takes
        the largest code, and NaN stays NaN, or is 0 in int8. Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    n = x.numel()
    given = None if scale is None else scale.detach().reshape(1)
    codes, used = quantize_blocks(x.detach().reshape(n), block=(n,), dtype=dtype, scale=given)
    return codes.view(x.shape), used.reshape(()).clone()


@quantize_tensorwise.check
def _check(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> None:
    layout.check_activation("quantize_tensorwise", x)
    layout.check_code_dtype("quantize_tensorwise", dtype)
    if scale is None:
        return
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise ValueError(
            f"quantize_tensorwise: scale is {tuple(scale.shape)} {scale.dtype}; it must be one "
            f"float32 element, or None for the scale of x itself"
        )
    layout.check_devices("quantize_tensorwise", x, scale=scale)


@quantize_tensorwise.fake
def _fake(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((), dtype=torch.float32)
