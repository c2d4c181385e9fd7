"""What the products of float8 codes of experts share: when the library multiplies them, and what is
set up once for operands like each other.

a, a_scale, b, b_scale and the ends of the experts' rows are as of the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ao_kernels.triton import grouped_library, launch

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def library_refusal(
    a: Tensor, b: Tensor, n_experts: int, out_dtype: torch.dtype | None
) -> str | None:
    """Why torch._scaled_grouped_mm does not take operands like these, or None."""
    if a.dtype != torch.float8_e4m3fn or b.dtype != torch.float8_e4m3fn:
        return "torch._scaled_grouped_mm multiplies e4m3 by e4m3"
    if out_dtype not in (None, torch.bfloat16):
        return "results of torch._scaled_grouped_mm are bfloat16"
    if a.shape[-1] % 16 or b.shape[-1] % 16 or b.shape[-2] % 16 or 0 in (*a.shape, *b.shape):
        return "torch._scaled_grouped_mm takes multiples of 16"
    if n_experts > grouped_library.MOST_EXPERTS:
        return f"torch._scaled_grouped_mm takes up to {grouped_library.MOST_EXPERTS} experts"
    return grouped_library.device_refusal(a.device)


class Products:
    """The products of one op, by all of its kernels."""

    def __init__(self) -> None:
        self._plans: launch.Plans[Multiply] = launch.Plans()

    def direct(
        self,
        _: int,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        ends: Tensor,
        out_dtype: torch.dtype | None = None,
        fast_accum: bool = False,
    ) -> Any:
        """The direct entry: of whichever kernel multiplied operands like these before."""
        multiply = self._plans.get(_key(a, a_scale, b, b_scale, ends, out_dtype, fast_accum))
        return NotImplemented if multiply is None else multiply(a, a_scale, b, b_scale, ends)

    def start(
        self,
        multiply: Multiply,
        given: Operands,
        ready: Operands,
        out_dtype: torch.dtype | None,
        fast_accum: bool,
    ) -> Tensor:
        """Multiply what was given, made contiguous in ``ready``; kept for the next call like it."""
        if launch.same_places(given, ready):
            self._plans.keep(_key(*given, out_dtype, fast_accum), multiply)
        return multiply(*ready)


def contiguous(given: Operands) -> Operands:
    a, a_scale, b, b_scale, ends = (t.contiguous() for t in given)
    return a, a_scale, b, b_scale, ends


def _key(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> tuple[Any, ...]:
    facts = launch.facts
    operands = facts(a), facts(a_scale), facts(b), facts(b_scale)
    return operands, facts(ends), out_dtype, fast_accum
