"""int4 linear with float8 activations in Triton.

M tokens, N output features, K input features. One kernel quantizes the tokens; the kernel of
int4_linear multiplies their codes, which float16 holds exactly, and then their scales:

    y[m, n] = (sum_k q[m, k] * w[n, k]) * x_scale[m] + bias[n]

in float32, rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.float8_int4_linear import float8_int4_linear
from ao_kernels.triton import float8_tokens, int4_linear, launch, tiles


class _Plan(NamedTuple):
    tokens: float8_tokens.Tokens
    linear: int4_linear.Plan


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    refused = tiles.refusal(x, bias, codes, scale, zero)
    return refused or float8_tokens.refusal(x, "row", group_size)


def _key(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), facts(zero), group_size, facts(bias)


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, zero, group_size, bias))
    return NotImplemented if plan is None else _launch(plan, x, codes, scale, zero, bias)


@float8_int4_linear.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    shape = x.shape
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*shape[:-1], codes.shape[0]))
    given = (x, codes, scale, zero, bias)
    ready = (tiles.rows(x), codes.contiguous(), dense(scale), dense(zero), dense(bias))
    x_MK, codes, scale, zero, bias = ready
    key = (shape, _key(x_MK, codes, scale, zero, group_size, bias))
    plan = _PLANS.get(key)
    if plan is None:
        linear = int4_linear.plan_of(shape, *ready[:4], group_size, bias, coded=True)
        plan = _PLANS.keep(key, _Plan(float8_tokens.tokens(x_MK, "row", x_MK.shape[1]), linear))
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given[:4], group_size, given[4]), plan)
    return _launch(plan, x_MK, codes, scale, zero, bias)


def _launch(
    plan: _Plan,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    x_codes, x_scale = plan.tokens(x)
    return int4_linear.launch_plan(plan.linear, x_codes, codes, scale, zero, bias, x_scale)
