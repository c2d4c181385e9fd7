"""A step of Adam in the compiled CUDA extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda import steps
from ao_kernels.ops import moments
from ao_kernels.ops.adam_step import adam_step

_LISTS = 8


def _supports(params: Sequence[Tensor], grads: Sequence[Tensor], *others: Any) -> str | None:
    return steps.refusal(params, grads, state_bits=others[7], block_size=others[8])


@adam_step.kernel(
    "cuda",
    device="cuda",
    supports=_supports,
    direct=steps.direct_entry(_cuda.adam_step, _LISTS),
)
def _run(*args: Any) -> None:
    moments.run_compiled(_cuda.adam_step, _LISTS, args)
