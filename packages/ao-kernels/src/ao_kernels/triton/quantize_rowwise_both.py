"""An operand to float8 or int8 with scales of its rows and of its columns, in Triton.

Three launches: the largest magnitudes of parts of rows and columns, their scales, then the tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops.quantize_rowwise_both import quantize_rowwise_both
from ao_kernels.triton import directions, launch, tiles

_PLANS: launch.Plans[directions.Plan] = launch.Plans()


def _supports(x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str) -> str | None:
    return tiles.dtype_refusal(x)


def _direct(
    _: int, x: Tensor, dtype: torch.dtype, power_of_two: bool = False, outputs: str = "both"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype, power_of_two, outputs))
    return NotImplemented if plan is None else plan(x)


@quantize_rowwise_both.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(
    x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_rowwise_both.reference(x, dtype, power_of_two, outputs)
    ready = directions.ready(x)
    key = (launch.facts(ready), dtype, power_of_two, outputs)
    plan = _PLANS.get(key)
    if plan is None:
        plan = directions.plan(
            ready, directions.VECTORS, dtype, power_of_two=power_of_two, outputs=outputs
        )
        _PLANS.keep(key, plan)
    return plan(ready)
