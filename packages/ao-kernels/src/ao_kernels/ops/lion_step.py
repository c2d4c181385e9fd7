"""One step of Lion for a list of parameters, in place, with momentum of any format.

    u = sign(beta1 * m + (1 - beta1) * g)
    p = p * (1 - lr * weight_decay) - lr * u
    m = beta2 * m + (1 - beta2) * g

p parameter, g gradient, m exp_avg. Lion: Chen et al., "Symbolic Discovery of Optimization
Algorithms" (2023). T parameters, B blocks of n elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import moments
from ao_kernels.registry import op

__all__ = ["lion_scalars", "lion_step"]

# Columns of `scalars`; as many as adam_step has, for the same kernels.
COLUMNS = ("decay", "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "lr", "-", "-")


def lion_scalars(
    count: int,
    *,
    lr: float | Tensor,
    betas: tuple[float | Tensor, float | Tensor],
    weight_decay: float | Tensor,
    gradient_scale: float = 1.0,
) -> Tensor:
    """`scalars` for ``count`` parameters, as `adam_scalars` has them for Adam; no step is in it."""

    def row(_: Any, lr: Any, beta1: Any, beta2: Any, decay: Any) -> tuple[Any, ...]:
        rest = (beta2, (1 - beta2) * gradient_scale, lr, 0 * lr, 0 * lr)
        return 1 - lr * decay, beta1, (1 - beta1) * gradient_scale, *rest

    return moments.scalar_rows([0.0] * count, (lr, *betas, weight_decay), row)


@op(
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_scale, "
    "Tensor scalars, str state_bits, int block_size, bool maximize=False, int[] keys=[], "
    "int[] offsets=[]) -> ()",
    tensors=(),
    inline=False,
)
def lion_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    maximize: bool = False,
    keys: Sequence[int] = (),
    offsets: Sequence[int] = (),
) -> None:
    """Change parameters and momentum as one step of Lion does.

    The arguments are those of `adam_step`, with the only moment that Lion has; ``scalars`` is what
    `lion_scalars` gives. Every kernel gives the same bits, parameters included.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    NaN and inf in a gradient: NaN makes the parameter's element NaN; with either the block of a
    quantized momentum has a NaN scale then, and zero codes. A sign of zero leaves the element to
    its decay.

    Gradients: none.
    """
    table = scalars.to(params[0].device) if params else scalars
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        decay, beta1, rest1, beta2, rest2, lr, *_ = table[i].to(wide).unbind()
        x, g = p.detach().to(wide) * decay, g.detach().to(wide)
        g = -g if maximize else g
        stored = moments.Stored(state_bits, block_size, p)
        m = stored.read(exp_avg, exp_avg_scale, i, signed=True)
        mixed = m * beta1 + g * rest1
        sign = torch.where(mixed.isnan(), mixed, mixed.sign())
        stored.write(exp_avg, exp_avg_scale, i, m * beta2 + g * rest2, signed=True)
        moments.store(p, x - sign * lr, keys, offsets, i)


@lion_step.check
def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_scale: Sequence[Tensor],
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    maximize: bool,
    keys: Sequence[int],
    offsets: Sequence[int],
) -> None:
    state = {"exp_avg": (exp_avg, exp_avg_scale)}
    moments.check_step(
        "lion_step", params, grads, state, scalars, COLUMNS, state_bits, block_size, keys, offsets
    )


@lion_step.fake
def _fake(*args: object) -> None:
    return None
