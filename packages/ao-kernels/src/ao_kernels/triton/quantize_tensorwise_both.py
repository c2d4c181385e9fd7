"""An operand to float8 or int8 with one scale, in both directions, in Triton.

Two launches: the largest magnitudes of parts of x, then the tiles, each of which finds the largest
of these for itself. A given scale takes the second alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops.quantize_tensorwise_both import quantize_tensorwise_both
from ao_kernels.triton import directions, launch, tiles

_PLANS: launch.Plans[directions.Plan] = launch.Plans()


def _supports(
    x: Tensor, dtype: torch.dtype, scale: Tensor | None, power_of_two: bool, outputs: str
) -> str | None:
    if scale is not None and scale.device != x.device:
        return f"the arguments are on {x.device} and {scale.device}"
    return tiles.dtype_refusal(x)


def _direct(
    _: int,
    x: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype, launch.facts(scale), power_of_two, outputs))
    return NotImplemented if plan is None else _launch(plan, x, scale)


@quantize_tensorwise_both.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(
    x: Tensor, dtype: torch.dtype, scale: Tensor | None, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_tensorwise_both.reference(x, dtype, scale, power_of_two, outputs)
    ready, given = directions.ready(x), None if scale is None else scale.resolve_neg()
    others = (power_of_two, outputs)
    key: Any = (launch.facts(ready), dtype, launch.facts(given), *others)
    plan = _PLANS.get(key)
    if plan is None:
        plan = directions.plan(
            ready,
            directions.TENSOR,
            dtype,
            power_of_two=power_of_two,
            outputs=outputs,
            given=given is not None,
        )
        _PLANS.keep(key, plan)
    return _launch(plan, ready, given)


def _launch(
    plan: directions.Plan, x: Tensor, given: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    found, scale, found_t, _ = plan(x, given)
    return found, found_t, scale
