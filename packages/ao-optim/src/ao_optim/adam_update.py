"""One step of Adam and AdamW on plain tensors in float32 (float64 for float64 parameters).

    AdamW    p = p * (1 - lr * weight_decay)           Adam    g = g + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = max(u, v) with amsgrad, else v
    p = p - lr / (1 - beta1**t) * m / (sqrt(u) / sqrt(1 - beta2**t) + eps)

p parameter, g gradient, m exp_avg, v exp_avg_sq, u max_exp_avg_sq, t the step, from 1. Adam:
Kingma and Ba (2015); AdamW: Loshchilov and Hutter (2019); amsgrad: Reddi, Kale and Kumar (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["adam_update", "scalar"]


def scalar(value: float | Tensor, device: torch.device) -> float | Tensor:
    """A hyperparameter as arithmetic with tensors on `device` takes it."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().reshape(())
    return value if value.device.type == "cpu" else value.to(device)


def adam_update(
    p: Tensor,
    g: Tensor,
    moments: Mapping[str, Tensor],
    *,
    step: float,
    group: Mapping[str, Any],
    decoupled: bool,
) -> Tensor:
    """The new parameter, in the dtype of `p`; `moments` are changed in place.

    p, g: the parameter and its gradient, float32 or float64, left as they are.
    moments: exp_avg, exp_avg_sq and, with amsgrad, max_exp_avg_sq, in the dtype and shape of `p`.
    group: lr, betas, eps, weight_decay (numbers or 0-d tensors) and maximize.
    decoupled: weight decay as in AdamW, else as in Adam.
    """
    lr, decay = (scalar(group[name], p.device) for name in ("lr", "weight_decay"))
    beta1, beta2 = (scalar(beta, p.device) for beta in group["betas"])
    g = -g if group["maximize"] else g
    if decoupled:
        p = p * (1 - lr * decay)
    elif not (isinstance(decay, float | int) and decay == 0):
        g = g + p * decay
    m, v = moments["exp_avg"], moments["exp_avg_sq"]
    m.mul_(beta1).add_(g * (1 - beta1))
    v.mul_(beta2).add_(g * g * (1 - beta2))
    if "max_exp_avg_sq" in moments:
        v = torch.maximum(moments["max_exp_avg_sq"], v, out=moments["max_exp_avg_sq"])
    root = v.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    return p - (m / root).mul_(lr / (1 - beta1**step))
