"""One step of Adam or AdamW for a list of parameters, in place, with moments of any format.

    Adam     g = g + weight_decay * p                AdamW    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = max(u, v) with amsgrad, else v
    p = p - lr / (1 - beta1**t) * m / (sqrt(u) / sqrt(1 - beta2**t) + eps)

p parameter, g gradient, m exp_avg, v exp_avg_sq, u max_exp_avg_sq, t the step, from 1. Adam:
Kingma and Ba (2015); AdamW: Loshchilov and Hutter (2019); amsgrad: Reddi, Kale and Kumar (2018).
T parameters, B blocks of n elements, S columns of `scalars`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import moments
from ao_kernels.registry import op

__all__ = ["adam_scalars", "adam_step"]

# Columns of `scalars`.
COLUMNS = (
    "decay",  # AdamW: 1 - lr * weight_decay; Adam: weight_decay
    "beta1",
    "one_minus_beta1",  # times the gradient's scale
    "beta2",
    "one_minus_beta2",  # times its square
    "inv_root_correction",  # 1 / sqrt(1 - beta2**t)
    "eps",
    "step_size",  # lr / (1 - beta1**t)
)


def adam_scalars(
    steps: Sequence[float],
    *,
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    eps: float,
    weight_decay: float | Tensor,
    decoupled: bool,
    gradient_scale: float = 1.0,
) -> Tensor:
    """The rows of `scalars`, (T, S) float64, for parameters whose steps these are, counted from 1.

    gradient_scale: what gradients are multiplied by, in their factors and so without a pass over
    them; with ``decoupled`` only. Numbers may be tensors of one element. Where some are on a GPU
    the result is there, too, and the host does not wait for them; else it is on the CPU.
    """

    if not decoupled and gradient_scale != 1.0:
        raise ValueError("adam_scalars: Adam adds weight decay to gradients, which have no scale")

    def row(t: Any, lr: Any, beta1: Any, beta2: Any, weight_decay: Any) -> tuple[Any, ...]:
        decay = 1 - lr * weight_decay if decoupled else weight_decay
        root = (1 - beta2**t) ** -0.5
        size = lr / (1 - beta1**t)
        rests = (1 - beta1) * gradient_scale, (1 - beta2) * gradient_scale**2
        return decay, beta1, rests[0], beta2, rests[1], root, eps + 0 * t, size

    return moments.scalar_rows(steps, (lr, *betas, weight_decay), row)


@op(
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, "
    "Tensor(d!)[] max_exp_avg_sq, Tensor(e!)[] exp_avg_scale, Tensor(f!)[] exp_avg_sq_scale, "
    "Tensor(g!)[] max_exp_avg_sq_scale, Tensor scalars, str state_bits, int block_size, "
    "bool decoupled=True, bool maximize=False, int[] dithers=[], int[] keys=[], "
    "int[] offsets=[]) -> ()",
    tensors=(),
    inline=False,
)
def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    exp_avg_sq_scale: Sequence[Tensor],
    max_exp_avg_sq_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    decoupled: bool = True,
    maximize: bool = False,
    dithers: Sequence[int] = (),
    keys: Sequence[int] = (),
    offsets: Sequence[int] = (),
) -> None:
    """Change parameters and moments as one step of AdamW (``decoupled``) or Adam does.

    Everything is computed in float32 (float64 for float64 parameters), each operation of the
    equations above rounded by itself and in their order, with the factors of ``scalars``. The
    parameter takes the moments before they are quantized again. Moments have the same bits with
    every kernel; parameters on GPUs differ by a few units in the last place of the update, whose
    root and quotient are approximate there.

    Args:
        params: T parameters of one dtype: float32, bfloat16, float16 or float64, any shapes.
        grads: their gradients, of one dtype of these, in the parameters' shapes.
        exp_avg, exp_avg_sq: with ``state_bits`` "32" moments in the parameters' shapes, float32
            (float64 for float64 parameters). Else codes as `ao_core.moments` has them, (B, n) or,
            of 4 bits, (B, n / 2), contiguous, B = ceil(numel / n).
        max_exp_avg_sq: the same for amsgrad; empty without.
        exp_avg_scale, exp_avg_sq_scale, max_exp_avg_sq_scale: (B) float32, contiguous; empty for
            "32" (and without amsgrad).
        scalars: (T, 8) float64, what `adam_scalars` gives, on the CPU or the parameters' device.
        state_bits: "8", "4", "fp8" or "32".
        block_size: n, a multiple of 8.
        maximize: go up the gradient.
        dithers: with ``state_bits`` "4" T starts of `ao_core.moments.dither_starts`: exp_avg and
            exp_avg_sq are rounded with a dither. Empty: to nearest, which max_exp_avg_sq is in any
            case.
        keys: T keys of `ao_core.rounding.random_key`: bfloat16 parameters are rounded
            stochastically. Empty: to nearest, which other parameters are in any case.
        offsets: with keys, of each parameter's first element the index in the whole parameter.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    NaN and inf: as in torch.optim.AdamW the element of the parameter becomes NaN. Its block of a
    quantized moment has a NaN scale then, and zero codes.

    Gradients: none.
    """
    table = scalars.to(params[0].device) if params else scalars
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        decay, beta1, rest1, beta2, rest2, correction, eps, size = table[i].to(wide).unbind()
        x, g = p.detach().to(wide), g.detach().to(wide)
        g = -g if maximize else g
        if decoupled:
            x = x * decay
        else:
            g = g + x * decay
        stored = moments.Stored(state_bits, block_size, p)
        m = stored.read(exp_avg, exp_avg_scale, i, signed=True)
        v = stored.read(exp_avg_sq, exp_avg_sq_scale, i, signed=False)
        m = m * beta1 + g * rest1
        v = v * beta2 + g * g * rest2
        dither = dithers[i] if dithers else None
        stored.write(exp_avg, exp_avg_scale, i, m, signed=True, dither=dither)
        stored.write(exp_avg_sq, exp_avg_sq_scale, i, v, signed=False, dither=dither)
        if max_exp_avg_sq:
            u = stored.read(max_exp_avg_sq, max_exp_avg_sq_scale, i, signed=False)
            v = torch.maximum(u, v)
            stored.write(max_exp_avg_sq, max_exp_avg_sq_scale, i, v, signed=False)
        x = x - m / (moments.root(v) * correction + eps) * size
        moments.store(p, x, keys, offsets, i)


@adam_step.check
def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    max_exp_avg_sq: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    exp_avg_sq_scale: Sequence[Tensor],
    max_exp_avg_sq_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    decoupled: bool,
    maximize: bool,
    dithers: Sequence[int],
    keys: Sequence[int],
    offsets: Sequence[int],
) -> None:
    state = {
        "exp_avg": (exp_avg, exp_avg_scale),
        "exp_avg_sq": (exp_avg_sq, exp_avg_sq_scale),
    }
    if max_exp_avg_sq or max_exp_avg_sq_scale:
        state["max_exp_avg_sq"] = (max_exp_avg_sq, max_exp_avg_sq_scale)
    if dithers and (state_bits != "4" or len(dithers) != len(params)):
        raise ValueError(
            f"adam_step: dithers are one a parameter with state_bits '4', or none; got "
            f"{len(dithers)} for {len(params)} parameters with state_bits {state_bits!r}"
        )
    moments.check_step(
        "adam_step", params, grads, state, scalars, COLUMNS, state_bits, block_size, keys, offsets
    )


@adam_step.fake
def _fake(*args: object) -> None:
    return None
