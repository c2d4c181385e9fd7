"""Grouped linears in Triton: how each of them reaches ``grouped_product``.

T tokens sorted by expert, K input features. Where activations are quantized, a launch of the
quantize ops does it first, for the tokens of all experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.registry import Op
from ao_kernels.triton import float8_tokens, grouped_product, launch, tiles
from ao_kernels.triton.grouped_product import Weight
from ao_kernels.triton.quantize_rowwise import row_launch, row_refusal


class _Plan(NamedTuple):
    tokens: float8_tokens.Tokens | None
    product: grouped_product.Product


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
        product = grouped_product.product(x_TK, kind, weight, offsets, bias)
        return _Plan(_tokens(x_TK, kind, weight.block_k), product)

    def start(plan: _Plan, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        *given, offsets, bias = args
        weight, _ = weight_of(*given)
        if plan.tokens is None:
            return plan.product(x, None, weight, offsets, bias)
        codes, scale = plan.tokens(x)
        return plan.product(codes, scale, weight, offsets, bias)

    return run


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
    if kind == "tensor":
        return "tokens of an expert share a scale; the Triton kernel takes one for each token"
    return float8_tokens.refusal(x, kind, block_k)


def _tokens(x_TK: Tensor, kind: str | None, block_k: int) -> float8_tokens.Tokens | None:
    if kind is None:
        return None
    if kind != "int8":
        return float8_tokens.tokens(x_TK, kind, block_k)
    codes = launch.Room.of(x_TK.shape, torch.int8)
    scale = launch.Room.of((x_TK.shape[0],), torch.float32)
    return float8_tokens.Tokens(codes, scale, row_launch(x_TK, torch.int8), None)
