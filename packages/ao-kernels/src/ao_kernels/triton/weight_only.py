"""Weight-only linears in Triton by the product of experts: there is one, and all rows are its own.

M tokens, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.registry import Op
from ao_kernels.triton import grouped_product, launch, tiles
from ao_kernels.triton.grouped_product import Product, Weight

_PLANS: launch.Plans[Product] = launch.Plans()  # of all these linears


def register(op: Op, weight_of: Callable[..., Weight]) -> Callable[..., Tensor]:
    """Adds the kernel of a linear, and gives its run.

    weight_of: the arguments between x and bias -> the weight, without a dimension of experts.
    """

    def supports(x: Tensor, *args: Any) -> str | None:
        *given, bias = args
        weight = weight_of(*given)
        return tiles.refusal(x, bias, weight.codes, weight.scale, weight.zero)

    def direct(_: int, x: Tensor, *args: Any) -> Tensor:
        args = args if len(args) == op._most else (*args, None)
        plan = _PLANS.get(_key(op.name, x, *args))
        return NotImplemented if plan is None else start(plan, x, args)

    @op.kernel("triton", device=tiles.DEVICES, supports=supports, direct=tiles.eager(direct))
    def run(x: Tensor, *args: Any) -> Tensor:
        codes = args[0]
        if x.numel() == 0 or codes.numel() == 0:
            return x.new_empty((*x.shape[:-1], codes.shape[0]))
        given = (x, *args)
        ready = (tiles.rows(x), *(dense(a) if isinstance(a, Tensor) else a for a in args))
        key = (x.shape, _key(op.name, *ready))
        plan = _PLANS.get(key) or _PLANS.keep(key, planned(x.shape, *ready))
        if launch.same_places(_tensors(given), _tensors(ready)):
            _PLANS.keep(_key(op.name, *given), plan)
        return start(plan, ready[0], ready[1:])

    def planned(shape: torch.Size, x_MK: Tensor, *args: Any) -> Product:
        *given, bias = args
        plan = grouped_product.product(x_MK, None, _as_expert(weight_of(*given)), None, bias)
        y = launch.Room.of((*shape[:-1], args[0].shape[0]), x_MK.dtype)
        return plan._replace(y=y, parts=plan.parts if plan.finish else y)

    def start(plan: Product, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        *given, bias = args
        return plan(x, None, weight_of(*given), None, bias)

    return run


def _as_expert(w: Weight) -> Weight:
    return w._replace(
        codes=w.codes[None], scale=w.scale[None], zero=None if w.zero is None else w.zero[None]
    )


def _key(*args: Any) -> tuple[Any, ...]:
    return tuple(launch.facts(a) if isinstance(a, Tensor) else a for a in args)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor)]
