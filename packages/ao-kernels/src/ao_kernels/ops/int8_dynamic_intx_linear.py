"""Linear of per-token int8 activations and weights of 1 to 8 bits.

    y_MN = ((q_MK - z_M1) @ w_NK.T) * s_M1 + bias_N
    x ~ (q - z) * s        w = (code - zero) * scale

M tokens, N output features, K input features, G = ceil(K / group_size) groups, b bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import layout, tokens
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group_size, "
    "Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
)
def int8_dynamic_intx_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layer with packed weights of 1 to 8 bits; activations are quantized to int8, token by
    token.

    low, high = min(x[m], 0), max(x[m], 0)
    s[m] = max((high - low) / 255, smallest normal float32)
    z[m] = round_half_even(-128 - low * (1/s[m])), in [-128, 127]
    q[m, k] = round_half_even(x[m, k] * (1/s[m])) + z[m], in [-128, 127]
    dot[m, n, g] = sum_{k in g} (code[n, k] - zero[n, g]) * (q[m, k] - z[m])
    y[m, n] = s[m] * sum_g scale[n, g] * dot[m, n, g] + bias[n]

    Args:
        x: (..., K) float32, bfloat16 or float16, any strides, any number of rows. float64 runs the
            reference.
        codes: (N, ceil(K/8)*bits) uint8: a little-endian bit stream a row.
        scale: (N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 2**(bits-1). May be fractional.
        bits: 1 to 8.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        bias: (N,) of a floating dtype, or None.

    Returns:
        (..., N) in the dtype of x. Products of codes are summed exactly within a group, groups in
        float32. A token that holds NaN or inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: with respect to x (grad_y @ w, straight through the rounding of x) and bias.
    """
    w_NK = _dequantize(x, codes, scale, zero, bits, group_size, tokens.exact_dtype(x))
    return tokens.linear(x, w_NK, bias, mapping="asymmetric")


@int8_dynamic_intx_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> None:
    layout.check_activation("int8_dynamic_intx_linear", x)
    layout.check_intx("int8_dynamic_intx_linear", codes, scale, zero, bits, group_size, x.shape[-1])
    layout.check_bias("int8_dynamic_intx_linear", bias, codes.shape[0])
    layout.check_devices(
        "int8_dynamic_intx_linear", x, codes=codes, scale=scale, zero=zero, bias=bias
    )


@int8_dynamic_intx_linear.fake
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


@int8_dynamic_intx_linear.backward
def _backward(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
    x, codes, scale, zero, bits, group_size, bias = args
    w_NK = None
    if needs[0]:
        w_NK = _dequantize(x, codes, scale, zero, bits, group_size, layout.sum_dtype(x))
    return layout.linear_grads(grad, x, w_NK, bias, needs)


def _dequantize(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    return layout.dequantize_intx(
        codes, scale, zero, bits=bits, group_size=group_size, length=x.shape[-1], dtype=dtype
    )
