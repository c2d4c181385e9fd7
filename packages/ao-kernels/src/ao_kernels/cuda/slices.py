"""Weight-only linears of many tokens by way of a weight that is dequantized slice by slice.

    y_MN[:, n0:n1] = x_MK @ w_NK[n0:n1].T      w_NK = (code - zero) * scale

As :mod:`ao_kernels.cuda.dequantized`, but the dequantized weight exists for some of the N output
features at a time, in memory that every slice of a call uses again. It takes at most SLICE_BYTES
where the unquantized layer may take a gigabyte, and less than the L2 cache of the GPU holds: what
one kernel writes, the library's product reads from there.

M tokens, N output features, K input features.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ao_kernels.cpu.weight import aligned

__all__ = ["SIDE_STREAM", "SLICE_BYTES", "boundaries", "linear", "refusal"]

SLICE_BYTES = 32 << 20  # of the dequantized slice, at most; 0: no call is sliced
SIDE_STREAM = False  # whether a slice is dequantized while the one before it is multiplied
_MOST_WAVES = 1.06  # of tiles, over those that were all full: a whole weight has no more slack
_LEAST_TOKENS = 512  # few tokens are multiplied in float32, which ``dequantized`` alone does
_TILES = ((128, 256), (256, 128))  # output features by tokens: what libraries take on Hopper
_STEP = 128  # output features: the smaller side of a tile
_SLICE_COST = 256  # input features of a wave of tiles that take as long as two launches: 3 us


def refusal(x: Tensor, codes: Tensor, bias: Tensor | None) -> str | None:
    """Why a weight that may be dequantized is not sliced, or None."""
    N, K = codes.shape[0], x.shape[-1]
    if bias is not None:
        return "the library adds a bias only to all output features at once"
    if not SLICE_BYTES or N * K * x.dtype.itemsize <= SLICE_BYTES:
        return f"the dequantized weight takes no more than {SLICE_BYTES} bytes"
    M = x.numel() // K
    if M < _LEAST_TOKENS:
        return f"x has {M} tokens; weights are sliced from {_LEAST_TOKENS} on"
    row_bytes, n = K * x.dtype.itemsize, _multiprocessors(x.device)
    ends = boundaries(M, N, row_bytes, multiprocessors=n, most_bytes=SLICE_BYTES)
    waves = sum(_waves(M, end - begin, n) for begin, end in pairwise(ends))
    full = N * M / (_TILES[0][0] * _TILES[0][1] * n)
    if waves > full * _MOST_WAVES:
        return f"{M} tokens of slices are {waves} waves of tiles, those of the whole {full:.1f}"
    return None


@functools.lru_cache(maxsize=4096)
def boundaries(
    M: int, N: int, row_bytes: int, *, multiprocessors: int, most_bytes: int, multiple: int = 1
) -> tuple[int, ...]:
    """Where slices of the N output features begin, and N at the end.

    All slices but the last have as many rows (of ``row_bytes`` each), a multiple of 128 and of
    ``multiple``, and fit into ``most_bytes``, unless not even that multiple does. Of these numbers
    of rows the one is taken for which the waves of tiles on all multiprocessors and the launches
    take the least time, for a last wave that is not full costs as much as a full one; the smallest
    of several.
    """
    if N * row_bytes <= most_bytes:
        return 0, N
    step = math.lcm(_STEP, multiple)
    most = max(most_bytes // (row_bytes * step), 1) * step
    features = max(row_bytes // 2, 1)  # input features, if they have 16 bits

    def cost(rows: int) -> int:
        whole, rest = divmod(N, rows)
        waves = whole * _waves(M, rows, multiprocessors)
        waves += _waves(M, rest, multiprocessors) if rest else 0
        return waves * features + (whole + bool(rest)) * _SLICE_COST

    rows = min(range(step, most + 1, step), key=cost)
    return *range(0, N, rows), N


def _waves(M: int, rows: int, multiprocessors: int) -> int:
    """Of tiles of a slice, whichever way they lie."""
    tiles = max(-(-rows // n) * -(-M // m) for n, m in _TILES)
    return -(-tiles // multiprocessors)


def linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    block_n: int = 1,
    *,
    most_bytes: int | None = None,
    side_stream: bool | None = None,
) -> Tensor:
    """x (..., K) -> (..., N), without bias; other arguments as of ``dequantized.linear``.

    most_bytes and side_stream: for benchmarks; SLICE_BYTES and SIDE_STREAM.
    """
    x_MK = x.reshape(-1, x.shape[-1])
    y_MN = x.new_empty((x_MK.shape[0], codes.shape[0]))
    weight = _Weight(x_MK, codes, scale, zero, bits, group_size, block_n)
    ends = weight.boundaries(SLICE_BYTES if most_bytes is None else most_bytes)
    multiply = _beside if (SIDE_STREAM if side_stream is None else side_stream) else _in_turn
    multiply(x_MK, weight, list(pairwise(ends)), y_MN)
    return y_MN.view(*x.shape[:-1], codes.shape[0])


class _Weight:
    """A quantized weight, and the dtype to dequantize it to."""

    def __init__(
        self,
        x_MK: Tensor,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bits: int,
        group_size: int,
        block_n: int,
    ) -> None:
        self._x_MK, self._like = x_MK, x_MK.new_empty((0, x_MK.shape[1]))
        self._codes, self._scale, self._zero = aligned(codes), aligned(scale), aligned(zero)
        self._bits, self._group_size, self._block_n = bits, group_size, block_n
        # One row of scales may stand for all.
        self._sliced_scales = scale.shape[0] > 1

    def boundaries(self, most_bytes: int) -> tuple[int, ...]:
        M, K = self._x_MK.shape
        return boundaries(
            M,
            self._codes.shape[0],
            K * self._x_MK.itemsize,
            multiprocessors=_multiprocessors(self._x_MK.device),
            most_bytes=most_bytes,
            multiple=self._block_n if self._sliced_scales else 1,
        )

    def dequantize(self, begin: int, end: int) -> Tensor:
        """w[begin:end], of a call of ``boundaries``, in memory of the current stream."""
        scale, zero = self._scale, self._zero
        if self._sliced_scales:
            rows = slice(begin // self._block_n, -(-end // self._block_n))
            scale, zero = scale[rows], None if zero is None else zero[rows]
        w_nK = _dequantize(
            self._like,
            self._codes[begin:end],
            scale,
            zero,
            self._bits,
            self._group_size,
            self._block_n,
        )
        assert w_nK is not NotImplemented
        return w_nK


def _dequantize(*args: Any) -> Tensor:
    from ao_kernels import _cuda  # not at the top: the CPU tests run without it

    return _cuda.dequantize(*args)


def _in_turn(x_MK: Tensor, weight: _Weight, parts: list[tuple[int, int]], y_MN: Tensor) -> None:
    """torch's allocator gives the memory of a slice to the next one, for the stream is the same."""
    for begin, end in parts:
        w_nK = weight.dequantize(begin, end)
        torch.mm(x_MK, w_nK.T, out=y_MN[:, begin:end])
        del w_nK


def _beside(x_MK: Tensor, weight: _Weight, parts: list[tuple[int, int]], y_MN: Tensor) -> None:
    """Two slices exist at a time: one is multiplied, the next is dequantized in another stream.

    Their memory belongs to that stream, which waits for a product before its slice is let go: what
    is dequantized into that memory next comes after it. Everything is ordered by events, none of
    them waits on the host, and both streams are joined at the end: graphs capture it.
    """
    main, side = torch.cuda.current_stream(x_MK.device), _side_stream(x_MK.device)
    side.wait_stream(main)

    def ahead(part: tuple[int, int]) -> tuple[Tensor, torch.cuda.Event]:
        with torch.cuda.stream(side):
            w_nK = weight.dequantize(*part)
        return w_nK, side.record_event()

    following = ahead(parts[0])
    for index, (begin, end) in enumerate(parts):
        w_nK, ready = following
        if index + 1 < len(parts):
            following = ahead(parts[index + 1])
        main.wait_event(ready)
        torch.mm(x_MK, w_nK.T, out=y_MN[:, begin:end])
        side.wait_event(main.record_event())
        del w_nK
        if index + 1 == len(parts):
            del following
    main.wait_stream(side)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # Its blocks go before those of the product that wait for a place.
    return torch.cuda.Stream(device, priority=-1)
