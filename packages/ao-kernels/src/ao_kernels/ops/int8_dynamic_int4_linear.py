"""Linear of per-token int8 activations and 4-bit weights ("8da4w").

    y_MN = ((q_MK - z_M1) @ w_NK.T) * s_M1 + bias_N
    x ~ (q - z) * s        w = (code - zero) * scale

M tokens, N output features, K input features, G = ceil(K / group_size) groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int group_size, Tensor? bias=None)"
    " -> Tensor",
    tensors=("x", "bias"),
)
def int8_dynamic_int4_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with 4-bit weights; activations are quantized to int8, token by token.

    :func:`ao_kernels.ops.int8_dynamic_intx_linear` with ``bits=4``; its docstring has the
    equations.

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
            reference.
        codes: (N, ceil(K/8)*4) uint8; byte j of a row is code[2j] | code[2j+1] << 4.
        scale: (N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 8. May be fractional.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. A token that holds NaN or inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: with respect to x (grad_y @ w, straight through the rounding of x) and bias.
    """
    w_NK = _dequantize(x, codes, scale, zero, group_size, tokens.exact_dtype(x))
    return tokens.linear(x, w_NK, bias, mapping="asymmetric")


@int8_dynamic_int4_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> None:
    layout.check_activation("int8_dynamic_int4_linear", x)
    layout.check_intx("int8_dynamic_int4_linear", codes, scale, zero, 4, group_size, x.shape[-1])
    layout.check_bias("int8_dynamic_int4_linear", bias, codes.shape[0])
    layout.check_devices(
        "int8_dynamic_int4_linear", x, codes=codes, scale=scale, zero=zero, bias=bias
    )


@int8_dynamic_int4_linear.fake
def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@int8_dynamic_int4_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, zero, group_size, bias = args
    w_NK = None
    if needs[0]:
        w_NK = _dequantize(x, codes, scale, zero, group_size, layout.sum_dtype(x))
    return layout.linear_grads(grad, x, w_NK, bias, needs)


def _dequantize(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    return layout.dequantize_intx(
        codes, scale, zero, bits=4, group_size=group_size, length=x.shape[-1], dtype=dtype
    )
