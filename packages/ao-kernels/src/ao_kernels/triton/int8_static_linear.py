"""int8 linear with int8 activations of a known scale in Triton.

M tokens, N output features, K input features. One kernel makes codes of the tokens; the rest is
int8_dynamic_linear, with the same scale for each token, or NaN for one that holds NaN or inf.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int8_static_linear import int8_static_linear
from ao_kernels.triton import int8_dynamic_linear, launch, tiles

_PLANS: launch.Plans[int8_dynamic_linear.Plan] = launch.Plans()


def _supports(
    x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None
) -> str | None:
    return tiles.refusal(x, bias, codes, scale, x_scale)


def _key(
    x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), facts(x_scale), facts(bias)


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, x_scale, bias))
    if plan is None:
        return NotImplemented
    return int8_dynamic_linear.launch_plan(plan, x, codes, scale, bias, x_scale)


@int8_static_linear.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None) -> Tensor:
    shape = x.shape
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*shape[:-1], codes.shape[0]))
    given = (x, codes, scale, x_scale, bias)
    ready = (tiles.rows(x), codes.contiguous(), dense(scale), dense(x_scale), dense(bias))
    x_MK, codes, scale, x_scale, bias = ready
    key = (shape, _key(*ready))
    plan = _PLANS.get(key)
    if plan is None:
        plan = int8_dynamic_linear.plan_of(shape, x_MK, codes, scale, bias, static=True)
        _PLANS.keep(key, plan)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given), plan)
    return int8_dynamic_linear.launch_plan(plan, x_MK, codes, scale, bias, x_scale)
