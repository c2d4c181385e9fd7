"""A whole tensor to float8 or int8 in Triton.

n elements in a row. Up to ``_ONE_PROGRAM`` one program does it, as one row. More take two launches:
programs find the largest magnitudes of their parts, then each program of the second launch finds
the largest of these for itself and quantizes its elements. No atomics: bits repeat. A given scale
takes the second launch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.quantize_tensorwise import quantize_tensorwise
from ao_kernels.triton import codes, launch, tiles
from ao_kernels.triton.quantize_block import options
from ao_kernels.triton.quantize_rowwise import row_launch

_ONE_PROGRAM = 65536
_BLOCK = 8192
_MOST_PEAKS = 1024


@triton.jit
def _peaks(x, peaks, n, BLOCK: tl.constexpr):
    """peaks[p] = the largest magnitude among the elements of program p."""
    offset = tl.arange(0, BLOCK)
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    largest = tl.zeros((BLOCK,), tl.int32)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < n:
        loaded = tl.load(x + start + offset, mask=start + offset < n, other=0.0)
        largest = tl.maximum(largest, codes.magnitude(codes.widened(loaded)))
        start += stride
    tl.store(peaks + tl.program_id(0), tl.max(largest, 0))


@triton.jit
def _quantize(
    x,
    result,
    scale,
    peaks,
    given,
    n,
    n_peaks,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    GIVEN: tl.constexpr,
    KEEPS_INF: tl.constexpr,
    SHORT: tl.constexpr,
    PEAKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # From the end on: what was read last is still in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    loaded = tl.load(x + at, mask=at < n, other=0.0)
    if GIVEN:
        step = tl.load(given)
    else:
        part = tl.arange(0, PEAKS)
        step = codes.scale_of(
            tl.max(tl.load(peaks + part, mask=part < n_peaks, other=0), 0),
            HIGH,
            False,
            FUSED and MANTISSA != 0,
        )
    value = codes.widened(loaded)
    if KEEPS_INF:
        value = codes.finite(value, FUSED)
    found = codes.codes_of(value, step, GIVEN, MANTISSA, BIAS, FUSED, NATIVE, SHORT)
    tl.store(result + at, found, mask=at < n)
    if program == 0:
        tl.store(scale, step)


class TensorPlan(NamedTuple):
    """``whole``: one launch does it all; else ``find`` with ``peaks``, unless a scale is given, and
    ``quantize``."""

    codes: launch.Room
    whole: launch.Launch | None
    find: launch.Launch | None
    peaks: launch.Room
    quantize: launch.Launch | None


_SCALE = launch.Room.of((), torch.float32)


def tensor_plan(
    shape: Sequence[int],
    x_n: Tensor,
    dtype: torch.dtype,
    given: Tensor | None,
    *,
    keeps_inf: bool = False,
) -> TensorPlan:
    """For :func:`launch_plan` with tensors like x (n,) and the ``given`` scale.

    ``keeps_inf``: with a given scale inf is not cut to the largest code but becomes NaN.
    """
    n, device = len(x_n), x_n.device
    room = launch.Room.of(shape, dtype)
    if given is None and n <= _ONE_PROGRAM:
        return TensorPlan(room, row_launch(x_n[None], dtype), None, _SCALE, None)
    n_blocks = triton.cdiv(n, _BLOCK)
    n_peaks, find = 0, None
    if given is None:
        n_peaks = min(n_blocks, 4 * tiles.multiprocessors(device), _MOST_PEAKS)
        find = launch.Launch(
            _peaks, (n_peaks,), (n,), {"BLOCK": _BLOCK}, options(_BLOCK // 2), device
        )
    constants = codes.constants(dtype, device)
    constants |= {
        "GIVEN": given is not None,
        "KEEPS_INF": keeps_inf,
        "SHORT": x_n.dtype != torch.float32,
        "PEAKS": triton.next_power_of_2(max(n_peaks, 1)),
        "BLOCK": _BLOCK,
    }
    quantize = launch.Launch(
        _quantize, (n_blocks,), (n, n_peaks), constants, options(_BLOCK), device
    )
    return TensorPlan(room, None, find, launch.Room.of((n_peaks,), torch.int32), quantize)


def _supports(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> str | None:
    if scale is not None and scale.device != x.device:
        return f"the arguments are on {x.device} and {scale.device}"
    return tiles.dtype_refusal(x)


_PLANS: launch.Plans[TensorPlan] = launch.Plans()


def _direct(
    _: int, x: Tensor, dtype: torch.dtype, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    plan = _PLANS.get((launch.facts(x), dtype, launch.facts(scale)))
    return NotImplemented if plan is None else launch_plan(plan, x, scale)


@quantize_tensorwise.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return quantize_tensorwise.reference(x, dtype, scale)
    x_n = x.resolve_neg().contiguous().view(-1)
    given = None if scale is None else scale.resolve_neg()
    key = (launch.facts(x_n), x.shape, dtype, launch.facts(given))
    plan = _PLANS.get(key) or _PLANS.keep(key, tensor_plan(x.shape, x_n, dtype, given))
    if launch.same_places((x, scale), (x_n, given)):
        _PLANS.keep((launch.facts(x), dtype, launch.facts(scale)), plan)
    return launch_plan(plan, x_n, given)


def launch_plan(plan: TensorPlan, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Codes and scale of x, which is contiguous."""
    result, scale, peaks = plan.codes.like(x), _SCALE.like(x), None
    if plan.whole is not None:
        plan.whole(x, result, scale)
        return result, scale
    if plan.find is not None:
        peaks = plan.peaks.like(x)
        plan.find(x, peaks)
    assert plan.quantize is not None
    plan.quantize(x, result, scale, peaks, given)
    return result, scale
