"""Linear of int8 activations with a scale that is known before, and int8 weights.

    y_MN = (q_MK @ c_NK.T) * x_scale * scale_1N + bias_N        x ~ q * x_scale, w = c * scale

M tokens, N output features, K input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor x_scale, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def int8_static_linear(
    x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Linear layer with int8 weights whose activations become int8 by one scale for all.

    q = round_half_even(x * (1/x_scale)) in [-127, 127]
    y[m, n] = x_scale * scale[n] * sum_k q[m, k] * codes[n, k] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
        reference.
        codes: (N, K) int8.
        scale: (N or 1, 1) float32 or bfloat16.
        x_scale: (1, 1) float32, positive. Activations beyond 127 times it are cut to that.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Products of codes are summed exactly. A token that holds NaN or
        inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w, straight through the rounding and cutting of x) and
    bias.
    """
    w_NK = _dequantize(x, codes, scale, tokens.exact_dtype(x))
    return tokens.linear(x, w_NK, bias, mapping="symmetric", scale=x_scale)


@int8_static_linear.check
def _check(x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> None:
    name = "int8_static_linear"
    layout.check_activation(name, x)
    layout.check_int8(name, codes, scale, _row(x), x.shape[-1])
    layout.check_static_scale(name, x_scale)
    layout.check_bias(name, bias, codes.shape[0])
    layout.check_devices(name, x, codes=codes, scale=scale, x_scale=x_scale, bias=bias)


@int8_static_linear.fake
def _fake(x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@int8_static_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, _, bias = args
    w_NK = _dequantize(x, codes, scale, layout.sum_dtype(x)) if needs[0] else None
    return layout.linear_grads(grad, x, w_NK, bias, needs)


def _dequantize(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return layout.dequantize_int8(codes, scale, group_size=_row(x), dtype=dtype)


def _row(x: Tensor) -> int:
    return max(x.shape[-1], 1)
