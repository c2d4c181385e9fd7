"""Linear of float8 activations, quantized on every call, and float8 weights.

    y_MN = (q_MK * s) @ (c_NK * scale).T + bias_N        x ~ q * s, w = c * scale

M tokens, N output features, K input features. A block of block_n x block_k codes shares a scale.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, int block_n, int block_k, str activation, "
    "Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def float8_dynamic_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with float8 weights whose activations are quantized to float8 e4m3 on the way.

    s = max(amax |x| / 448, smallest normal float32) of each block of activations
    q = float8(clamp(x * (1/s), -448, 448))
    y[m, n] = sum_k q[m, k] * s * codes[n, k] * scale[n // block_n, k // block_k] + bias[n]

    Any activation goes with any weight. :func:`ao_core.numerics.quantize_float8_tokens` has the
    details.

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
        reference.
        codes: (N, K) float8_e4m3fn or float8_e5m2.
        scale: (ceil(N / block_n), ceil(K / block_k)) float32.
        block_n: rows that share a scale; at least N when all do.
        block_k: input features that share a scale: a multiple of 8, or at least K for whole rows.
        activation: which activations share s: "tensor" (all of x), "row" (a token) or "block"
        (block_k input features of a token).
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Sums have at least float32's precision, but for bfloat16 or
        float16 and e4m3 on GPUs that multiply float8: about 14 bits for up to 128 products of codes
        (4096 with many tokens), then float32 (docs/numerics.md). NaN or inf give NaN for their
        token, and with activation "tensor" for all tokens.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w, straight through the rounding of x) and bias.
    """
    w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, tokens.exact_dtype(x))
    return tokens.float8_linear(x, w_NK, bias, activation=activation, block_k=block_k)


@float8_dynamic_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> None:
    name = "float8_dynamic_linear"
    layout.check_activation(name, x)
    layout.check_float8(name, codes, scale, block_n, block_k, x.shape[-1])
    tokens.check_float8_activation(name, activation)
    layout.check_bias(name, bias, codes.shape[0])
    layout.check_devices(name, x, codes=codes, scale=scale, bias=bias)


@float8_dynamic_linear.fake
def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@float8_dynamic_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, block_n, block_k, _, bias = args
    w_NK = None
    if needs[0]:
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, layout.sum_dtype(x))
    return layout.linear_grads(grad, x, w_NK, bias, needs)
