"""float8 linear with float8 activations in Triton, or with the library's product.

M tokens, N output features, K input features. The launches of the quantize ops make codes and
scales of the tokens; ``float8_product`` or, for many tokens, torch._scaled_mm multiplies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.float8_dynamic_linear import float8_dynamic_linear
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
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> str | None:
    return tiles.refusal(x, bias, codes, scale) or float8_tokens.refusal(
        x, float8_tokens.kind_of(activation, scale), block_k
    )


def _library_supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> str | None:
    refused = _supports(x, codes, scale, block_n, block_k, activation, bias)
    return refused or float8_tokens.library_refusal(x, codes, scale, bias)


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, block_n, block_k, activation, bias))
    return NotImplemented if plan is None else _launch(plan, x, codes, scale, bias)


def _key(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), block_n, block_k, activation, facts(bias)


@float8_dynamic_linear.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_direct),  # for the kernel below, too: the plans know which one it is
)
def _run_library(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> Tensor:
    return _planned(x, codes, scale, block_n, block_k, activation, bias, library=True)


@float8_dynamic_linear.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
) -> Tensor:
    return _planned(x, codes, scale, block_n, block_k, activation, bias, library=False)


def _planned(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    bias: Tensor | None,
    *,
    library: bool,
) -> Tensor:
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))
    kind = float8_tokens.kind_of(activation, scale)
    given = (x, codes, scale, bias)
    ready = (float8_tokens.ready_rows(x, kind), codes.contiguous(), dense(scale), dense(bias))
    x_MK, codes, scale, bias = ready
    key = (x.shape, library, _key(x_MK, codes, scale, block_n, block_k, kind, bias))
    plan = _PLANS.get(key)
    if plan is None:
        product = None
        if not library:
            product = float8_product.product(
                x.shape[:-1], x_MK, kind, codes, scale, block_n, block_k, bias
            )
        shape = (*x.shape[:-1], codes.shape[0])
        plan = _Plan(shape, float8_tokens.tokens(x_MK, kind, block_k), product)
        _PLANS.keep(key, plan)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given[:3], block_n, block_k, activation, given[3]), plan)
    return _launch(plan, x_MK, codes, scale, bias)


def _launch(plan: _Plan, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x_codes, x_scale = plan.tokens(x)
    if plan.product is None:
        return float8_tokens.library_product(plan.shape, x_codes, x_scale, codes, scale, bias)
    return plan.product(x_codes, x_scale, codes, scale, bias)
