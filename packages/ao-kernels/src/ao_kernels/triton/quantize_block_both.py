"""An operand to float8 or int8 with scales of blocks, in both directions, in Triton.

One launch: a tile of 128 x 128 is a block, or holds the blocks of 1 x 128 of both directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops.quantize_block_both import quantize_block_both
from ao_kernels.triton import directions, launch, tiles

_PLANS: launch.Plans[directions.Plan] = launch.Plans()


def _supports(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> str | None:
    return tiles.dtype_refusal(x)


def _direct(
    _: int,
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    key = (launch.facts(x), dtype, block_rows, block_cols, power_of_two, outputs)
    plan = _PLANS.get(key)
    return NotImplemented if plan is None else plan(x)


@quantize_block_both.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_block_both.reference(
            x, dtype, block_rows, block_cols, power_of_two, outputs
        )
    ready = directions.ready(x)
    key = (launch.facts(ready), dtype, block_rows, block_cols, power_of_two, outputs)
    plan = _PLANS.get(key)
    if plan is None:
        kind = directions.ROW_BLOCKS if block_rows == 1 else directions.SQUARE_BLOCKS
        plan = directions.plan(ready, kind, dtype, power_of_two=power_of_two, outputs=outputs)
        _PLANS.keep(key, plan)
    return plan(ready)
