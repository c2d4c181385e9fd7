"""intx weight-only linear: 1 to 8 bits a weight.

    y_MN = x_MK @ w_NK.T + bias_N        w = (code - zero) * scale

M tokens, N output features, K input features, G = ceil(K / group_size) groups, b bits a code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.ops import layout
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group_size, "
    "Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def intx_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with weights of 1 to 8 bits; activations stay at their precision.

    y[m, n] = sum_g scale[n, g] * sum_{k in g} (code[n, k] - zero[n, g]) * x[m, k] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
            reference.
        codes: (N, ceil(K/8)*b) uint8; a row is a little-endian bit stream, code k in bits
            [k*b, (k+1)*b).
        scale: (N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 2**(b-1). May be fractional.
        bits: b, 1 to 8.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Sums are float32.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: with respect to x (grad_y @ w) and bias.
    """
    w_NK = _dequantize(x, codes, scale, zero, bits, group_size)
    return layout.linear(x, w_NK, bias)


@intx_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> None:
    layout.check_activation("intx_linear", x)
    layout.check_intx("intx_linear", codes, scale, zero, bits, group_size, x.shape[-1])
    layout.check_bias("intx_linear", bias, codes.shape[0])
    layout.check_devices("intx_linear", x, codes=codes, scale=scale, zero=zero, bias=bias)


@intx_linear.fake
def _fake(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@intx_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, zero, bits, group_size, bias = args
    w_NK = _dequantize(x, codes, scale, zero, bits, group_size) if needs[0] else None
    return layout.linear_grads(grad, x, w_NK, bias, needs)


def _dequantize(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int
) -> Tensor:
    return layout.dequantize_intx(
        codes,
        scale,
        zero,
        bits=bits,
        group_size=group_size,
        length=x.shape[-1],
        dtype=layout.sum_dtype(x),
    )
