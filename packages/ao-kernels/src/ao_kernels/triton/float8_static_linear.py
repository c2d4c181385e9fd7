"""float8 linear of activations with a known scale in Triton, or with the library's product.

M tokens, N output features, K input features. A launch of the quantize ops makes codes of the
tokens; ``float8_product`` or, for many tokens, torch._scaled_mm multiplies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.float8_static_linear import float8_static_linear
from ao_kernels.triton import float8_product, float8_tokens, launch, tiles


class _Plan(NamedTuple):
    """``product``: None where the library multiplies, for results of ``shape``."""

    shape: tuple[int, ...]
    tokens: float8_tokens.Tokens
    product: float8_product.Product | None


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> str | None:
    return tiles.refusal(x, bias, codes, scale, x_scale)


def _library_supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> str | None:
    refused = _supports(x, codes, scale, x_scale, block_n, block_k, bias)
    return refused or float8_tokens.library_refusal(x, codes, scale, bias)


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, x_scale, block_n, block_k, bias))
    return NotImplemented if plan is None else _launch(plan, x, codes, scale, x_scale, bias)


def _key(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), facts(x_scale), block_n, block_k, facts(bias)


@float8_static_linear.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_direct),  # for the kernel below, too: the plans know which one it is
)
def _run_library(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> Tensor:
    return _planned(x, codes, scale, x_scale, block_n, block_k, bias, library=True)


@float8_static_linear.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
) -> Tensor:
    return _planned(x, codes, scale, x_scale, block_n, block_k, bias, library=False)


def _planned(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
    *,
    library: bool,
) -> Tensor:
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))
    given = (x, codes, scale, x_scale, bias)
    x_MK = float8_tokens.ready_rows(x, "tensor")
    ready = (x_MK, codes.contiguous(), dense(scale), dense(x_scale), dense(bias))
    x_MK, codes, scale, x_scale, bias = ready
    key = (x.shape, library, _key(x_MK, codes, scale, x_scale, block_n, block_k, bias))
    plan = _PLANS.get(key)
    if plan is None:
        product = None
        if not library:
            product = float8_product.product(
                x.shape[:-1], x_MK, "tensor", codes, scale, block_n, block_k, bias
            )
        shape = (*x.shape[:-1], codes.shape[0])
        plan = _Plan(shape, float8_tokens.tokens(x_MK, "tensor", block_k, x_scale), product)
        _PLANS.keep(key, plan)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given[:4], block_n, block_k, given[4]), plan)
    return _launch(plan, x_MK, codes, scale, x_scale, bias)


def _launch(
    plan: _Plan, x: Tensor, codes: Tensor, scale: Tensor, x_scale: Tensor, bias: Tensor | None
) -> Tensor:
    x_codes, x_scale = plan.tokens(x, x_scale)
    if plan.product is None:
        return float8_tokens.library_product(plan.shape, x_codes, x_scale, codes, scale, bias)
    return plan.product(x_codes, x_scale, codes, scale, bias)
