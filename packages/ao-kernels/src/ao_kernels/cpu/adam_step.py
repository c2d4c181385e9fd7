"""A step of Adam in the compiled extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ao_kernels import _C
from ao_kernels.cpu import steps
from ao_kernels.ops import moments
from ao_kernels.ops.adam_step import adam_step

_LISTS = 8


def _supports(params: Sequence[Tensor], grads: Sequence[Tensor], *others: Any) -> str | None:
    return steps.refusal(params, grads, state_bits=others[7], block_size=others[8])


@adam_step.kernel(
    "cpu",
    device="cpu",
    supports=_supports,
    direct=moments.direct_entry(_C.adam_step, _LISTS),
)
def _run(*args: Any) -> None:
    moments.run_compiled(_C.adam_step, _LISTS, args)
