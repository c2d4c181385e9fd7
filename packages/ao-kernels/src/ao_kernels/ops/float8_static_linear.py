"""Linear of float8 activations with a scale that is known before, and float8 weights.

    y_MN = (q_MK * x_scale) @ (c_NK * scale).T + bias_N        x ~ q * x_scale, w = c * scale

M tokens, N output features, K input features. A block of block_n x block_k codes shares a scale.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor x_scale, int block_n, int block_k, "
    "Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def float8_static_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with float8 weights whose activations become float8 e4m3 by one scale for all.

    q = float8(clamp(x * (1/x_scale), -448, 448))
    y[m, n] = x_scale * sum_k q[m, k] * codes[n, k] * scale[n // block_n, k // block_k] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
        reference.
        codes: (N, K) float8_e4m3fn or float8_e5m2.
        scale: (ceil(N / block_n), ceil(K / block_k)) float32.
        x_scale: (1, 1) float32, positive. Activations beyond 448 times it are cut to that.
        block_n: rows that share a scale; at least N when all do.
        block_k: input features that share a scale: a multiple of 8, or at least K for whole rows.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Sums have at least float32's precision, but for bfloat16 or
        float16 and e4m3 on GPUs that multiply float8: about 14 bits for up to 128 products of codes
        (4096 with many tokens), then float32 (docs/numerics.md). A token that holds NaN or
        inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w, straight through the rounding and cutting of x) and
    bias.
    """
    w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, tokens.exact_dtype(x))
    return tokens.float8_linear(x, w_NK, bias, activation="tensor", scale=x_scale)


@float8_static_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> None:
    name = "float8_static_linear"
    layout.check_activation(name, x)
    layout.check_float8(name, codes, scale, block_n, block_k, x.shape[-1])
    layout.check_static_scale(name, x_scale)
    layout.check_bias(name, bias, codes.shape[0])
    layout.check_devices(name, x, codes=codes, scale=scale, x_scale=x_scale, bias=bias)


@float8_static_linear.fake
def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@float8_static_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, _, block_n, block_k, bias = args
    w_NK = None
    if needs[0]:
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, layout.sum_dtype(x))
    return layout.linear_grads(grad, x, w_NK, bias, needs)
