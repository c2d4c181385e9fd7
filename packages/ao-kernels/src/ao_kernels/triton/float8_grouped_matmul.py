"""Products of float8 tokens with the weights of their experts, by ``grouped_library`` or by the
kernel of ``grouped_product``.

M tokens sorted by expert, E experts, N rows of an expert's b, K features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops.float8_grouped_matmul import float8_grouped_matmul
from ao_kernels.triton import grouped_library, grouped_product, launch, tiles

_Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_PLANS: launch.Plans[_Multiply] = launch.Plans()


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


def key(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> tuple[Any, ...]:
    facts = launch.facts
    operands = facts(a), facts(a_scale), facts(b), facts(b_scale)
    return operands, facts(offsets), out_dtype, fast_accum


def _direct(
    _: int,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
) -> Tensor:
    multiply = _PLANS.get(key(a, a_scale, b, b_scale, offsets, out_dtype, fast_accum))
    return NotImplemented if multiply is None else multiply(a, a_scale, b, b_scale, offsets)


def _library_supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return library_refusal(a, b, b.shape[0], out_dtype)


@float8_grouped_matmul.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_direct),  # for the kernel below, too: the plans know which one it is
)
def _run_library(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    given = (a, a_scale, b, b_scale, offsets)
    ready = tuple(t.contiguous() for t in given)
    weight = _weight(ready[2], ready[3])
    product = grouped_library.product(len(a), weight, a.device, fast_accum=fast_accum)
    return _start(product, given, ready, out_dtype, fast_accum)


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return None


@float8_grouped_matmul.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return float8_grouped_matmul.reference(
            a, a_scale, b, b_scale, offsets, out_dtype, fast_accum
        )
    given = (a, a_scale, b, b_scale, offsets)
    ready = tuple(t.contiguous() for t in given)
    weight, dtype = _weight(ready[2], ready[3]), out_dtype or torch.bfloat16
    product = grouped_product.product(ready[0], "row", weight, ready[4], None, out_dtype=dtype)
    return _start(product, given, ready, out_dtype, fast_accum)


def _weight(b: Tensor, b_scale: Tensor) -> grouped_product.Weight:
    return grouped_product.Weight(b, b_scale.view(*b.shape[:2], 1), None, 0, 1, b.shape[2])


def _start(
    product: grouped_product.Product | grouped_library.LibraryProduct,
    given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ready: tuple[Tensor, ...],
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    """Multiply what was given, and keep the product for the next call like it."""

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, offsets: Tensor) -> Tensor:
        return product(a, a_scale, _weight(b, b_scale), offsets, None)

    if launch.same_places(given, ready):
        _PLANS.keep(key(*given, out_dtype, fast_accum), multiply)
    return multiply(*ready)
