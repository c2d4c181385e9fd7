"""float8 weight-only linear.

    y_MN = x_MK @ w_NK.T + bias_N        w = code * scale

M tokens, N output features, K input features. A block of block_n x block_k codes shares a scale.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, int block_n, int block_k, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def float8_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with float8 weights; activations stay at their precision.

    y[m, n] = sum_k x[m, k] * codes[n, k] * scale[n // block_n, k // block_k] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
        reference.
        codes: (N, K) float8_e4m3fn or float8_e5m2.
        scale: (ceil(N / block_n), ceil(K / block_k)) float32.
        block_n: rows that share a scale; at least N when all do.
        block_k: input features that share a scale: a multiple of 8, or at least K for whole rows.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Sums have at least float32's precision; on GPUs, for more than
        16 tokens, they may be sums of weights that were rounded to the dtype of x (see
        docs/numerics.md).

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w) and bias.
    """
    w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, tokens.exact_dtype(x))
    return layout.linear(x, w_NK, bias)


@float8_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> None:
    layout.check_activation("float8_linear", x)
    layout.check_float8("float8_linear", codes, scale, block_n, block_k, x.shape[-1])
    layout.check_bias("float8_linear", bias, codes.shape[0])
    layout.check_devices("float8_linear", x, codes=codes, scale=scale, bias=bias)


@float8_linear.fake
def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@float8_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, block_n, block_k, bias = args
    w_NK = None
    if needs[0]:
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, layout.sum_dtype(x))
    return layout.linear_grads(grad, x, w_NK, bias, needs)
