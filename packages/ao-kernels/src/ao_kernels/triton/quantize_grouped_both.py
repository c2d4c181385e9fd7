"""Tokens of experts to float8 in both directions, in Triton.

M tokens, K features, E experts, P places of tokens, each expert's from a multiple of 32 on. By
rows a program quantizes whole tokens (``quantize_rowwise``). Transposed, tiles are of places: four
places of a word are of one expert, which is found by comparing the place with the ends of all.
``_places`` makes these; then x is read for the largest magnitude of each expert's columns, and once
more for the codes. The maxima are atomic, of integers: no order could change them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.directions import padded
from ao_kernels.ops.quantize_grouped_both import PLACES, n_places, quantize_grouped_both
from ao_kernels.triton import codes, launch, tiles
from ao_kernels.triton.directions import store_words
from ao_kernels.triton.quantize_rowwise import row_launch, row_refusal

_ROWS = 128  # places of a tile
_COLUMNS = 64
_WARPS = 4
_BLOCK = 1024  # elements of a program of _places and _scales
_STEP = tl.constexpr(PLACES)


@triton.jit(do_not_specialize=["M"])
def _places(offsets, ends, peaks, M, E, n, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """The padded ends of the experts' places, and zeros for the peaks of their columns."""
    e = tl.arange(0, EXPERTS)
    end = tl.minimum(tl.load(offsets + e, mask=e < E, other=0), M)
    begin = tl.minimum(tl.load(offsets + e - 1, mask=(e > 0) & (e < E), other=0), M)
    count = tl.maximum(end - begin, 0)
    upto = tl.cumsum((count + _STEP - 1) // _STEP * _STEP, 0)
    if tl.program_id(0) == 0:
        tl.store(ends + e, upto, mask=e < E)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(peaks + at, tl.zeros((BLOCK,), tl.int32), mask=at < n)


@triton.jit
def _tokens_of(offsets, ends, place, M, E, EXPERTS: tl.constexpr):
    """The expert of places (E: none), the token of each, and the end of the expert's tokens."""
    e = tl.arange(0, EXPERTS)
    end = tl.load(ends + e, mask=e < E, other=2147483647)
    expert = tl.sum((end[None, :] <= place[:, None]).to(tl.int32), 1)
    expert = tl.minimum(expert, E)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    first = tl.load(offsets + expert - 1, mask=expert > 0, other=0)
    stop = tl.load(offsets + expert, mask=expert < E, other=0)
    return expert, tl.minimum(first, M) + place - start, tl.minimum(stop, M)


@triton.jit
def _values_of(x, m, stop, k, K, x_stride):
    """Elements of tokens m before ``stop``, as float32; 0 elsewhere."""
    at = x + m.to(tl.int64)[:, None] * x_stride + k[None, :]
    loaded = tl.load(at, mask=(m < stop)[:, None] & (k < K)[None, :], other=0.0)
    return codes.widened(loaded)


@triton.jit(do_not_specialize=["M"])
def _column_peaks(
    x,
    offsets,
    ends,
    peaks,
    M,
    K,
    E,
    columns,
    tiles_k,
    x_stride,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(0)
    tile_m, tile_k = tile // tiles_k, tile % tiles_k
    word = tl.arange(0, BLOCK_M // 4)
    place = tile_m * BLOCK_M + word * 4
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    expert, m, stop = _tokens_of(offsets, ends, place, M, E, EXPERTS)
    s0 = codes.magnitude(_values_of(x, m, stop, k, K, x_stride))
    s1 = codes.magnitude(_values_of(x, m + 1, stop, k, K, x_stride))
    s2 = codes.magnitude(_values_of(x, m + 2, stop, k, K, x_stride))
    s3 = codes.magnitude(_values_of(x, m + 3, stop, k, K, x_stride))
    size = tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3))
    first, last = tl.min(expert, 0), tl.max(expert, 0)
    if first == last:
        row = peaks + first.to(tl.int64) * columns + k
        wanted = k < tl.where(first < E, columns, 0)
        tl.atomic_max(row, tl.max(size, 0), mask=wanted, sem="relaxed")
    else:
        # All words of a step of 32 places are of one expert.
        GROUPS: tl.constexpr = BLOCK_M // _STEP
        WORDS: tl.constexpr = _STEP // 4
        largest = tl.max(tl.reshape(size, (GROUPS, WORDS, BLOCK_K)), 1)
        of_step = tl.max(tl.reshape(expert, (GROUPS, WORDS)), 1)
        rows = peaks + of_step.to(tl.int64)[:, None] * columns + k[None, :]
        there = (of_step < E)[:, None] & (k < columns)[None, :]
        tl.atomic_max(rows, largest, mask=there, sem="relaxed")


@triton.jit
def _scales(
    peaks,
    scale,
    n,
    HIGH: tl.constexpr,
    POWER: tl.constexpr,
    FUSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    step = codes.scale_of(tl.load(peaks + at, mask=at < n, other=0), HIGH, POWER, FUSED)
    tl.store(scale + at, step, mask=at < n)


@triton.jit(do_not_specialize=["M"])
def _quantize_places(
    x,
    codes_KP,
    scale_EK,
    offsets,
    ends,
    M,
    K,
    E,
    places,
    columns,
    tiles_k,
    x_stride,
    HIGH: tl.constexpr,
    MANTISSA: tl.constexpr,
    BIAS: tl.constexpr,
    FUSED: tl.constexpr,
    NATIVE: tl.constexpr,
    SHORT: tl.constexpr,
    POWER: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    tile_m, tile_k = tile // tiles_k, tile % tiles_k
    word = tile_m * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    expert, m, stop = _tokens_of(offsets, ends, word * 4, M, E, EXPERTS)
    v0 = _values_of(x, m, stop, k, K, x_stride)
    v1 = _values_of(x, m + 1, stop, k, K, x_stride)
    v2 = _values_of(x, m + 2, stop, k, K, x_stride)
    v3 = _values_of(x, m + 3, stop, k, K, x_stride)
    at = scale_EK + expert.to(tl.int64)[:, None] * columns + k[None, :]
    step = tl.load(at, mask=(expert < E)[:, None] & (k < columns)[None, :], other=1.0)
    known = codes.inverse_of(step, MANTISSA, POWER, FUSED)
    c0 = codes.codes_of(v0, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
    c1 = codes.codes_of(v1, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
    c2 = codes.codes_of(v2, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
    c3 = codes.codes_of(v3, step, False, MANTISSA, BIAS, FUSED, NATIVE, SHORT, known, POWER)
    store_words(codes_KP, c0, c1, c2, c3, word, k, places, columns, False, FUSED)


class _Plan(NamedTuple):
    """``by_row`` and ``n_rows``: of tokens, whose padding is filled apart; the rest: transposed."""

    codes: launch.Room
    scale: launch.Room
    codes_t: launch.Room
    scale_t: launch.Room
    ends: launch.Room
    peaks: launch.Room
    n_rows: int
    by_row: launch.Launch | None
    make_places: launch.Launch
    find: launch.Launch | None
    make_scales: launch.Launch
    quantize: launch.Launch

    def __call__(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        found, scale = self.codes.like(x), self.scale.like(x)
        found_t, scale_t = self.codes_t.like(x), self.scale_t.like(x)
        ends, peaks = self.ends.like(x), self.peaks.like(x)
        if self.by_row is not None:
            self.by_row(x, found, scale)
            if found.shape[0] != self.n_rows:
                found.view(torch.uint8)[self.n_rows :].zero_()
                scale[self.n_rows :] = torch.finfo(torch.float32).tiny
        self.make_places(offsets, ends, peaks)
        if self.find is not None:
            self.find(x, offsets, ends, peaks)
            self.make_scales(peaks, scale_t)
            self.quantize(x, found_t, scale_t, offsets, ends)
        return found, scale, found_t, scale_t, ends


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _supports(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> str | None:
    return row_refusal(x)


def _direct(
    _: int,
    x: Tensor,
    dtype: torch.dtype,
    offsets: Tensor,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, ...]:
    plan = _PLANS.get((launch.facts(x), dtype, launch.facts(offsets), power_of_two, outputs))
    return NotImplemented if plan is None else plan(x, offsets)


@quantize_grouped_both.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> tuple[Tensor, ...]:
    if x.numel() == 0:
        return quantize_grouped_both.reference(x, dtype, offsets, power_of_two, outputs)
    x, offsets = tiles.rows(x), offsets.contiguous()
    key = (launch.facts(x), dtype, launch.facts(offsets), power_of_two, outputs)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS.keep(key, _plan(x, dtype, offsets.shape[0], power_of_two, outputs))
    return plan(x, offsets)


def _plan(x: Tensor, dtype: torch.dtype, E: int, power_of_two: bool, outputs: str) -> _Plan:
    (M, K), device = x.shape, x.device
    rows, columns, places = padded(M), padded(K), n_places(M, E)
    by_row, by_column = outputs != "columns", outputs != "rows"
    n = E * columns if by_column else 0
    constants = codes.constants(dtype, device)
    tile = {"EXPERTS": triton.next_power_of_2(E), "BLOCK_M": _ROWS, "BLOCK_K": _COLUMNS}
    options = {"num_warps": _WARPS, "num_stages": 1, "enable_fp_fusion": False}
    tiles_k = triton.cdiv(columns, _COLUMNS)
    grid = (triton.cdiv(places, _ROWS) * tiles_k,)

    def room(wanted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> launch.Room:
        return launch.Room.of(shape if wanted else (0,), dtype)

    return _Plan(
        room(by_row, (rows, columns), dtype),
        room(by_row, (rows, 1), torch.float32),
        room(by_column, (columns, places), dtype),
        room(by_column, (E, columns), torch.float32),
        room(True, (E,), torch.int32),
        room(by_column, (n,), torch.int32),
        M,
        row_launch(x, dtype, padded=columns, power_of_two=power_of_two) if by_row else None,
        launch.Launch(
            _places,
            (max(triton.cdiv(n, _BLOCK), 1),),
            (M, E, n),
            {"EXPERTS": tile["EXPERTS"], "BLOCK": _BLOCK},
            options,
            device,
        ),
        launch.Launch(
            _column_peaks, grid, (M, K, E, columns, tiles_k, x.stride(0)), tile, options, device
        )
        if by_column
        else None,
        launch.Launch(
            _scales,
            (max(triton.cdiv(n, _BLOCK), 1),),
            (n,),
            {
                "HIGH": constants["HIGH"],
                "POWER": power_of_two,
                "FUSED": constants["FUSED"],
                "BLOCK": _BLOCK,
            },
            options,
            device,
        ),
        launch.Launch(
            _quantize_places,
            grid,
            (M, K, E, places, columns, tiles_k, x.stride(0)),
            {
                **constants,
                "SHORT": x.dtype != torch.float32,
                "POWER": power_of_two,
                **tile,
            },
            options,
            device,
        ),
    )
