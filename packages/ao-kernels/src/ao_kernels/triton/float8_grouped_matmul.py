"""Products of float8 tokens with the weights of their experts: torch._scaled_grouped_mm, or the
kernel of ``grouped_product``.

M tokens sorted by expert, E experts, N rows of an expert's b, K features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.float8_grouped_matmul import float8_grouped_matmul
from ao_kernels.triton import grouped_product, launch, tiles

_ZEROS = 1024  # elements at a time
_PROGRAMS = 64
_Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_PLANS: launch.Plans[_Multiply] = launch.Plans()


@triton.jit(do_not_specialize=["M"])
def _zero_rest(y, offsets, M, E, N, BLOCK: tl.constexpr):
    """Rows behind the last expert's become 0."""
    first = tl.minimum(tl.load(offsets + E - 1), M).to(tl.int64) * N
    size = M.to(tl.int64) * N
    start = first + tl.program_id(0).to(tl.int64) * BLOCK
    while start < size:
        at = start + tl.arange(0, BLOCK)
        tl.store(y + at, tl.zeros((BLOCK,), y.dtype.element_ty), mask=at < size)
        start += tl.num_programs(0).to(tl.int64) * BLOCK


@functools.cache
def library_refusal(device: torch.device) -> str | None:
    """Why torch._scaled_grouped_mm does not run there, or None."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return "torch._scaled_grouped_mm is taken on sm_90"
    return None


def operand_refusal(a: Tensor, b: Tensor, out_dtype: torch.dtype | None) -> str | None:
    """Why torch._scaled_grouped_mm does not take operands like these, or None."""
    if a.dtype != torch.float8_e4m3fn or b.dtype != torch.float8_e4m3fn:
        return "torch._scaled_grouped_mm multiplies e4m3 by e4m3"
    if out_dtype not in (None, torch.bfloat16):
        return "results of torch._scaled_grouped_mm are bfloat16"
    if a.shape[-1] % 16 or b.shape[-1] % 16 or b.shape[-2] % 16 or 0 in (*a.shape, *b.shape):
        return "torch._scaled_grouped_mm takes multiples of 16"
    return None


def _key(
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
    multiply = _PLANS.get(_key(a, a_scale, b, b_scale, offsets, out_dtype, fast_accum))
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
    return library_refusal(a.device) or operand_refusal(a, b, out_dtype)


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
    (M, _), (E, N, _) = a.shape, b.shape
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
    zero_rest = launch.Launch(
        _zero_rest, (_PROGRAMS,), (M, E, N), {"BLOCK": _ZEROS}, options, a.device
    )

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, offsets: Tensor) -> Tensor:
        y = torch._scaled_grouped_mm(
            a,
            b.transpose(1, 2),
            a_scale.view(M),
            b_scale.view(E, N),
            offsets,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast_accum,
        )
        zero_rest(y, offsets)
        return y

    given = (a, a_scale, b, b_scale, offsets)
    ready = tuple(t.contiguous() for t in given)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given, out_dtype, fast_accum), multiply)
    return multiply(*ready)


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

    def weight(b: Tensor, b_scale: Tensor) -> grouped_product.Weight:
        scale = b_scale.view(*b.shape[:2], 1)
        return grouped_product.Weight(b, scale, None, 0, 1, b.shape[2])

    given = (a, a_scale, b, b_scale, offsets)
    ready = tuple(t.contiguous() for t in given)
    product = grouped_product.product(
        ready[0],
        "row",
        weight(ready[2], ready[3]),
        ready[4],
        None,
        out_dtype=out_dtype or torch.bfloat16,
    )

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, offsets: Tensor) -> Tensor:
        return product(a, a_scale, weight(b, b_scale), offsets, None)

    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given, out_dtype, fast_accum), multiply)
    return multiply(*ready)
