"""Grouped linears in Triton: how each of them reaches ``grouped_product``.

T tokens sorted by expert, K input features. Where activations are quantized, a launch of the
quantize ops does it first, for the tokens of all experts. Where the tokens of an expert share a
scale, the largest of their own is found next, and they are quantized again with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.registry import Op
from ao_kernels.triton import float8_tokens, grouped_library, grouped_product, launch, tiles
from ao_kernels.triton.grouped_product import Weight
from ao_kernels.triton.quantize_rowwise import row_launch, row_refusal, static_launch

_SHARING = 1024  # scales at a time
# Of an expert, on average, above which the library multiplies float8 codes. H200, 28672 x 4096:
# with 16 rows 253 us here and 336 there, with 64 320 and 294.
LIBRARY_ROWS = 32


@triton.jit(do_not_specialize=["T"])
def _share_scales(scale, offsets, T, BLOCK: tl.constexpr):
    """The scales of an expert's tokens become their largest; NaN, of the largest bits, stays."""
    e = tl.program_id(0)
    begin = tl.minimum(tl.load(offsets + e - 1, mask=e > 0, other=0), T)
    end = tl.minimum(tl.load(offsets + e), T)
    row = tl.arange(0, BLOCK)
    peaks = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        found = tl.load(scale + start + row, mask=start + row < end, other=0.0)
        peaks = tl.maximum(peaks, found.to(tl.int32, bitcast=True))
    shared = tl.max(peaks, 0).to(tl.float32, bitcast=True)
    for start in range(begin, end, BLOCK):
        tl.store(scale + start + row, shared, mask=start + row < end)


class _Tokens(NamedTuple):
    """``share``, ``again``: where the tokens of an expert share a scale."""

    rows: float8_tokens.Tokens
    share: launch.Launch | None
    again: launch.Launch | None

    def __call__(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = self.rows(x)
        if self.share is not None and self.again is not None:
            self.share(scale, offsets)
            self.again(x, codes, scale, scale)
        return codes, scale


class _Plan(NamedTuple):
    tokens: _Tokens | None
    product: grouped_product.Product | grouped_library.LibraryProduct


_PLANS: launch.Plans[_Plan] = launch.Plans()  # of all grouped ops


def register(
    grouped: Op, weight_of: Callable[..., tuple[Weight, str | None]]
) -> Callable[..., Tensor]:
    """Adds the kernel of a grouped op, and gives its run.

    weight_of: the arguments between x and offsets -> the weight, and how activations are quantized:
    as ``x_scales`` of :func:`grouped_product.product`, or None.
    """

    def supports(x: Tensor, *args: Any) -> str | None:
        *given, offsets, bias = args
        weight, kind = weight_of(*given)
        refused = tiles.refusal(x, bias, weight.codes, weight.scale, weight.zero, offsets)
        return refused or _refusal(x, kind, weight.block_k)

    def direct(_: int, x: Tensor, *args: Any) -> Tensor:
        args = args if len(args) == grouped._most else (*args, None)
        plan = _PLANS.get(_key(grouped.name, x, *args))
        return NotImplemented if plan is None else start(plan, x, args)

    @grouped.kernel("triton", device=tiles.DEVICES, supports=supports, direct=tiles.eager(direct))
    def run(x: Tensor, *args: Any) -> Tensor:
        codes = args[0]
        if x.numel() == 0 or codes.numel() == 0:
            return x.new_zeros(x.shape[0], codes.shape[1])
        given = (x, *args)
        ready = (tiles.rows(x), *(dense(a) if isinstance(a, Tensor) else a for a in args))
        key = _key(grouped.name, *ready)
        plan = _PLANS.get(key) or _PLANS.keep(key, planned(*ready))
        if launch.same_places(_tensors(given), _tensors(ready)):
            _PLANS.keep(_key(grouped.name, *given), plan)
        return start(plan, ready[0], ready[1:])

    def planned(x_TK: Tensor, *args: Any) -> _Plan:
        *given, offsets, bias = args
        weight, kind = weight_of(*given)
        tokens = _tokens(x_TK, kind, weight, offsets)
        if _takes_library(x_TK, kind, weight, bias):
            return _Plan(tokens, grouped_library.product(x_TK.shape[0], weight, x_TK.device))
        return _Plan(tokens, grouped_product.product(x_TK, kind, weight, offsets, bias))

    def start(plan: _Plan, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        *given, offsets, bias = args
        weight, _ = weight_of(*given)
        if plan.tokens is None:
            return plan.product(x, None, weight, offsets, bias)
        codes, scale = plan.tokens(x, offsets)
        return plan.product(codes, scale, weight, offsets, bias)

    return run


def _takes_library(x_TK: Tensor, kind: str | None, weight: Weight, bias: Tensor | None) -> bool:
    rows = grouped_product.rows_of(x_TK.shape[0], weight.codes.shape[0])
    few = rows <= LIBRARY_ROWS
    return not few and grouped_library.refusal(x_TK, kind, weight, bias) is None


def _key(*args: Any) -> tuple[Any, ...]:
    return tuple(launch.facts(a) if isinstance(a, Tensor) else a for a in args)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor)]


def _refusal(x: Tensor, kind: str | None, block_k: int) -> str | None:
    """Why activations are not quantized here, or None."""
    if kind is None:
        return None
    if kind == "int8":
        if x.shape[1] > grouped_product.MOST_INT8:
            return (
                f"x has {x.shape[1]} input features; the Triton kernel adds up to "
                f"{grouped_product.MOST_INT8} products of int8 codes"
            )
        return row_refusal(x)
    return float8_tokens.refusal(x, "row" if kind == "tensor" else kind, block_k)


def _tokens(x_TK: Tensor, kind: str | None, weight: Weight, offsets: Tensor) -> _Tokens | None:
    if kind is None:
        return None
    if kind == "int8":
        codes = launch.Room.of(x_TK.shape, torch.int8)
        scale = launch.Room.of((x_TK.shape[0],), torch.float32)
        quantize = row_launch(x_TK, torch.int8)
        return _Tokens(float8_tokens.Tokens(codes, scale, quantize, None), None, None)
    if kind != "tensor":
        return _Tokens(float8_tokens.tokens(x_TK, kind, weight.block_k), None, None)
    rows = float8_tokens.tokens(x_TK, "row", x_TK.shape[1])
    share = launch.Launch(
        _share_scales,
        (offsets.shape[0],),
        (x_TK.shape[0],),
        {"BLOCK": _SHARING},
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False},
        x_TK.device,
    )
    return _Tokens(rows, share, static_launch(x_TK, torch.float8_e4m3fn, each=True))
