"""Linear of per-token int8 activations and int8 weights.

    y_MN = (q_MK @ c_NK.T) * s_M1 * scale_1N + bias_N        x ~ q * s, w = c * scale

M tokens, N output features, K input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def int8_dynamic_linear(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Linear layer with int8 weights; activations are quantized to int8, token by token.

    s[m] = max(amax_k |x[m, k]| / 127, smallest normal float32)
    q[m, k] = round_half_even(x[m, k] * (1/s[m])), in [-127, 127]
    y[m, n] = s[m] * scale[n] * sum_k q[m, k] * codes[n, k] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
            reference.
        codes: (N, K) int8.
        scale: (N or 1, 1) float32 or bfloat16.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Products of codes are summed exactly; few tokens on CPUs with
        AVX-512 take those of codes + 128, with the rounding of float32. A token that holds NaN or
        inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: with respect to x (grad_y @ w, straight through the rounding of x) and bias.
    """
    w_NK = _dequantize(x, codes, scale, tokens.exact_dtype(x))
    return tokens.linear(x, w_NK, bias, mapping="symmetric")


@int8_dynamic_linear.check
def _check(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    layout.check_activation("int8_dynamic_linear", x)
    layout.check_int8("int8_dynamic_linear", codes, scale, _row(x), x.shape[-1])
    layout.check_bias("int8_dynamic_linear", bias, codes.shape[0])
    layout.check_devices("int8_dynamic_linear", x, codes=codes, scale=scale, bias=bias)


@int8_dynamic_linear.fake
def _fake(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@int8_dynamic_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, bias = args
    w_NK = _dequantize(x, codes, scale, layout.sum_dtype(x)) if needs[0] else None
    return layout.linear_grads(grad, x, w_NK, bias, needs)


def _dequantize(x: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return layout.dequantize_int8(codes, scale, group_size=_row(x), dtype=dtype)


def _row(x: Tensor) -> int:
    return max(x.shape[-1], 1)
