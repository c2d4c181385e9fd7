"""A step of Lion in the compiled CUDA extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda import steps
from ao_kernels.ops import moments
from ao_kernels.ops.lion_step import lion_step

_LISTS = 4


def _supports(params: Sequence[Tensor], grads: Sequence[Tensor], *others: Any) -> str | None:
    return steps.refusal(params, grads, state_bits=others[3], block_size=others[4])


@lion_step.kernel(
    "cuda",
    device="cuda",
    supports=_supports,
    direct=steps.direct_entry(_cuda.lion_step, _LISTS),
)
def _run(*args: Any) -> None:
    moments.run_compiled(_cuda.lion_step, _LISTS, args)
