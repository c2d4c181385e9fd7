"""An operand to float8 or int8 with scales of its rows and of its columns, in Triton.

Three launches: the largest magnitudes of parts of rows and columns, their scales, then the tiles.
Rows alone take one, of ``quantize_rowwise``, which reads x once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ao_kernels.ops.directions import PADDING, padded
from ao_kernels.ops.quantize_rowwise_both import quantize_rowwise_both
from ao_kernels.triton import directions, launch, tiles
from ao_kernels.triton.quantize_block import MOST
from ao_kernels.triton.quantize_rowwise import row_launch


class _Rows(NamedTuple):
    """Whole rows in registers, where nothing else is wanted."""

    codes: launch.Room
    scale: launch.Room
    quantize: launch.Launch

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found, scale = self.codes.like(x), self.scale.like(x)
        self.quantize(x, found, scale)
        return found, scale, x.new_empty(0, dtype=found.dtype), scale.new_empty(0)


_PLANS: launch.Plans[directions.Plan | _Rows] = launch.Plans()


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
        plan = _PLANS.keep(key, _plan(ready, dtype, power_of_two, outputs))
    return plan(ready)


def _plan(
    x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str
) -> directions.Plan | _Rows:
    M, K = x.shape[-2:]
    whole = x.dim() == 2 and x.stride(1) == 1 and M % PADDING == 0 and padded(K) <= MOST
    if outputs == "rows" and whole:
        return _Rows(
            launch.Room.of((M, padded(K)), dtype),
            launch.Room.of((M, 1), torch.float32),
            row_launch(x, dtype, padded=padded(K), power_of_two=power_of_two),
        )
    return directions.plan(x, directions.VECTORS, dtype, power_of_two=power_of_two, outputs=outputs)
