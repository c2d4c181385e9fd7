"""int8 tokens in plain torch: what the references of the int8_dynamic ops share.

M tokens, N output features, K input features. A token x_K becomes codes q_K, a scale s and a zero z
with x ~ (q - z) * s; :func:`ao_core.numerics.quantize_tokens` defines them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_tokens


def linear(x: Tensor, w_NK: Tensor, bias: Tensor | None, *, mapping: str) -> Tensor:
    """((q - z) @ w.T) * s + bias, rounded once to the dtype of x; sums in the dtype of w.

    With w in :func:`exact_dtype` products and sums of codes are exact. mapping: "symmetric" (z = 0)
    or "asymmetric".
    """
    x_MK = x.flatten(0, -2) if x.dim() > 1 else x[None]
    codes_MK, scale, zero = quantize_tokens(x_MK, mapping=mapping)
    q_MK = codes_MK.to(w_NK.dtype)
    if zero is not None:
        q_MK = q_MK - zero.to(w_NK.dtype)
    y_MN = (q_MK @ w_NK.T) * scale.to(w_NK.dtype)
    if bias is not None:
        y_MN = y_MN + bias.to(w_NK.dtype)
    return y_MN.to(x.dtype).reshape(*x.shape[:-1], w_NK.shape[0])


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64, in which sums of 2**22 products of codes and scales keep 1e-9; float32 where a
    device has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64
