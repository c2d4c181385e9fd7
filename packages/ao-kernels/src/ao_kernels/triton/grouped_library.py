"""float8 products of experts by torch._scaled_grouped_mm, where it takes them.

T tokens sorted by expert, E experts, N output features, K input features. The library takes codes
of both sides with a scale of each row, in rows of multiples of 16, on GPUs of compute capability
9.0. It reads past the tokens where an expert's end lies behind them, and leaves rows of no expert
as memory was: a launch in front of it bounds the ends, and one behind it writes zeros there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.cpu.weight import aligned
from ao_kernels.triton import launch, tiles
from ao_kernels.triton.float8_tokens import FAST_SUM

if TYPE_CHECKING:
    from ao_kernels.triton.grouped_product import Weight

_BLOCK = 2048  # values that are made zero at a time
MOST_EXPERTS = 1023


@triton.jit(do_not_specialize=["T"])
def _bound_ends(offsets, ends, T, E, EXPERTS: tl.constexpr):
    e = tl.arange(0, EXPERTS)
    end = tl.load(offsets + e, mask=e < E, other=0)
    tl.store(ends + e, tl.minimum(end, T), mask=e < E)


@triton.jit(do_not_specialize=["T"])
def _clear_rest(offsets, y, T, E, N, BLOCK: tl.constexpr):
    """Zeros in the rows of y (T, N) behind the last end."""
    used = tl.minimum(tl.load(offsets + E - 1), T).to(tl.int64) * N
    values = tl.full((), T, tl.int64) * N
    nothing = tl.zeros((BLOCK,), y.dtype.element_ty)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(used + tl.program_id(0).to(tl.int64) * BLOCK, values, step):
        at = start + tl.arange(0, BLOCK)
        tl.store(y + at, nothing, mask=at < values)


class LibraryProduct(NamedTuple):
    """Called like ``grouped_product.Product``."""

    ends: launch.Room
    bound: launch.Launch
    clear: launch.Launch
    fast_accum: bool | None  # as of scaled_product

    def __call__(
        self, x: Tensor, x_scale: Tensor | None, w: Weight, offsets: Tensor, bias: Tensor | None
    ) -> Tensor:
        assert x_scale is not None and bias is None
        ends = self.ends.like(x)
        self.bound(offsets, ends)
        y = scaled_product(x, x_scale, w.codes, w.scale, ends, fast_accum=self.fast_accum)
        self.clear(offsets, y)
        return y


def refusal(x: Tensor, x_scales: str | None, w: Weight, bias: Tensor | None) -> str | None:
    """Why torch._scaled_grouped_mm does not take a product, whose weights are contiguous, or
    None. x_scales: as of ``grouped_product.product``."""
    e4m3 = torch.float8_e4m3fn
    if x_scales not in ("row", "tensor") or w.codes.dtype != e4m3:
        return "torch._scaled_grouped_mm takes float8_e4m3fn codes of both, with scales of rows"
    E, N, K = w.codes.shape
    if w.scale.dtype != torch.float32 or w.scale.shape != (E, N, 1):
        return "torch._scaled_grouped_mm takes a float32 scale of each row of the weights"
    if x.dtype != torch.bfloat16 or bias is not None:
        return "torch._scaled_grouped_mm gives bfloat16, without bias"
    if N % 16 or K % 16 or E > MOST_EXPERTS:
        return (
            f"codes are {E} x {N} x {K}; torch._scaled_grouped_mm takes up to {MOST_EXPERTS} "
            "experts, and multiples of 16"
        )
    return device_refusal(x.device)


def device_refusal(device: torch.device) -> str | None:
    """Why torch._scaled_grouped_mm does not run there, or None."""
    there = device.type == "cuda" and not torch.version.hip and hasattr(torch, "_scaled_grouped_mm")
    if not there or torch.cuda.get_device_capability(device) != (9, 0):
        return "torch._scaled_grouped_mm is taken on GPUs of compute capability 9.0"
    return None


def product(
    T: int, w: Weight, device: torch.device, *, fast_accum: bool | None = None
) -> LibraryProduct:
    E, N = w.codes.shape[:2]
    bound = launch.Launch(
        _bound_ends,
        (1,),
        (T, E),
        {"EXPERTS": triton.next_power_of_2(E)},
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
        device,
    )
    clear = launch.Launch(
        _clear_rest,
        (min(2 * tiles.multiprocessors(device), triton.cdiv(T * N, _BLOCK)),),
        (T, E, N),
        {"BLOCK": _BLOCK},
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
        device,
    )
    return LibraryProduct(launch.Room.of((E,), torch.int32), bound, clear, fast_accum)


def scaled_product(
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    ends: Tensor,
    *,
    fast_accum: bool | None = None,
) -> Tensor:
    """(T, N) bfloat16; rows behind the last end are what memory was.

    x_codes (T, K), x_scale of T values, codes (E, N, K), scale (E, N, 1), ends (E,) at most T.
    fast_accum: sums of any length stay in the matrix units; None: as of
    ``float8_tokens.library_product``.
    """
    E, N, K = codes.shape
    return torch._scaled_grouped_mm(
        x_codes,
        aligned(codes).mT,
        x_scale.view(-1),
        scale.view(E, N),
        offs=ends,
        out_dtype=torch.bfloat16,
        use_fast_accum=K <= FAST_SUM if fast_accum is None else fast_accum,
    )
