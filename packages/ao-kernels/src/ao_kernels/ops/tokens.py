"""Quantized activations in plain torch: what the references of the dynamic and static ops share.

M tokens, N output features, K input features. To int8, a token x_K becomes codes q_K, a scale s and
a zero z with x ~ (q - z) * s; :func:`ao_core.numerics.quantize_tokens` defines them. To float8, a
block of activations becomes codes q and a scale s with x ~ q * s;
:func:`ao_core.numerics.quantize_float8_tokens` defines those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_float8_tokens, quantize_tokens
from ao_kernels.ops import layout

FLOAT8_ACTIVATIONS = ("tensor", "row", "block")


def linear(
    x: Tensor,
    w_NK: Tensor,
    bias: Tensor | None,
    *,
    mapping: str,
    scale: Tensor | None = None,
) -> Tensor:
    """((q - z) @ w.T) * s + bias, rounded once to the dtype of x; sums in the dtype of w.

    With w in :func:`exact_dtype` products and sums of codes are exact. mapping: "symmetric" (z = 0)
    or "asymmetric". scale: of all tokens, instead of one that is found for each.
    """
    x_MK = x.flatten(0, -2) if x.dim() > 1 else x[None]
    codes_MK, scale, zero = quantize_tokens(x_MK, mapping=mapping, scale=scale)
    q_MK = codes_MK.to(w_NK.dtype)
    if zero is not None:
        q_MK = q_MK - zero.to(w_NK.dtype)
    y_MN = (q_MK @ w_NK.T) * scale.to(w_NK.dtype)
    if bias is not None:
        y_MN = y_MN + bias.to(w_NK.dtype)
    return y_MN.to(x.dtype).reshape(*x.shape[:-1], w_NK.shape[0])


def check_float8_activation(op: str, activation: str) -> None:
    """activation must be one of :data:`FLOAT8_ACTIVATIONS`."""
    if activation not in FLOAT8_ACTIVATIONS:
        raise ValueError(
            f"{op}: activation is {activation!r}, not {' or '.join(map(repr, FLOAT8_ACTIVATIONS))}"
        )


def float8_linear(
    x: Tensor,
    w_NK: Tensor,
    bias: Tensor | None,
    *,
    activation: str,
    block_k: int | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """(q * s) @ w.T + bias, rounded once to the dtype of x; products and sums in the dtype of w.

    activation: "tensor" (one scale, or the given one), "row" (one a token) or "block" (one for
    block_k input features of a token).
    """
    x_MK = x.flatten(0, -2) if x.dim() > 1 else x[None]
    M, K = max(x_MK.shape[0], 1), max(x_MK.shape[1], 1)
    block = {"tensor": (M, K), "row": (1, K), "block": (1, min(block_k or K, K))}[activation]
    codes_MK, scale = quantize_float8_tokens(x_MK, block=block, scale=scale)
    q_MK = layout.dequantize_float8(codes_MK, scale, *block, w_NK.dtype)
    y_MN = q_MK @ w_NK.T
    if bias is not None:
        y_MN = y_MN + bias.to(w_NK.dtype)
    return y_MN.to(x.dtype).reshape(*x.shape[:-1], w_NK.shape[0])


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64, in which sums of 2**22 products of codes and scales keep 1e-9; float32 where a
    device has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64
