"""float8 weight-only linear in Triton, or dequantized for the library's product.

M tokens, N output features, K input features. For many bfloat16 tokens one kernel writes

    w[n, k] = code[n, k] * scale[n // block_n, k // block_k]

rounded to bfloat16, and torch's linear multiplies: for them its rate is worth more than the bytes
of the weight. All else is the product of ``float8_product``, whose weights are exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.float8_linear import float8_linear
from ao_kernels.triton import codes as float8
from ao_kernels.triton import float8_product, launch, tiles

_FEW = 512  # tokens up to which weights are not dequantized first
_BLOCK_N, _BLOCK_K = 8, 512


@triton.jit
def _dequantize(
    codes,
    scale,
    w,
    N,
    K,
    block_n,
    block_k,
    n_blocks,
    MANTISSA: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_k = tl.cdiv(K, BLOCK_K)
    n = (tl.program_id(0) // tiles_k) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = (tl.program_id(0) % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]
    at = n.to(tl.int64)[:, None] * K + k[None, :]
    code = tl.load(codes + at, mask=inside, other=0)
    of_block = scale + (n // block_n)[:, None] * n_blocks + (k // block_k)[None, :]
    value = float8.values_of(code, MANTISSA, NATIVE, tl.float32)
    value *= tl.load(of_block, mask=inside, other=0.0)
    tl.store(w + at, value.to(w.dtype.element_ty), mask=inside)


class _Plan(NamedTuple):
    """``product``, or ``dequantize`` to ``w`` and the library's product."""

    product: float8_product.Product | None
    dequantize: launch.Launch | None
    w: launch.Room


_PLANS: launch.Plans[_Plan] = launch.Plans()


def _supports(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> str | None:
    return tiles.refusal(x, bias, codes, scale)


def _library_supports(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> str | None:
    refused = tiles.refusal(x, bias, codes, scale)
    if refused is not None:
        return refused
    M = x.numel() // x.shape[-1]
    if M <= _FEW:
        return f"x has {M} tokens; weights are dequantized for more than {_FEW}"
    if x.dtype != torch.bfloat16 or (bias is not None and bias.dtype != torch.bfloat16):
        return "weights are dequantized for bfloat16 activations and bias"
    return None


def _direct(
    _: int,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, block_n, block_k, bias))
    return NotImplemented if plan is None else _launch(plan, x, codes, scale, bias)


def _key(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> tuple[Any, ...]:
    facts = launch.facts
    return facts(x), facts(codes), facts(scale), block_n, block_k, facts(bias)


@float8_linear.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_direct),  # for the kernel below, too: the plans know which one it is
)
def _run_library(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> Tensor:
    return _planned(x, codes, scale, block_n, block_k, bias, library=True)


@float8_linear.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> Tensor:
    return _planned(x, codes, scale, block_n, block_k, bias, library=False)


def _planned(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    bias: Tensor | None,
    *,
    library: bool,
) -> Tensor:
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))
    given = (x, codes, scale, bias)
    x_MK = x.resolve_neg() if library else tiles.rows(x)
    ready = (x_MK, codes.contiguous(), dense(scale), dense(bias))
    x_MK, codes, scale, bias = ready
    key = (x.shape, library, _key(x_MK, codes, scale, block_n, block_k, bias))
    plan = _PLANS.get(key)
    if plan is None:
        w = launch.Room.of(codes.shape, x.dtype)
        if library:
            plan = _Plan(None, _dequantize_launch(codes, scale, block_n, block_k), w)
        else:
            product = float8_product.product(
                x.shape[:-1], x_MK, None, codes, scale, block_n, block_k, bias
            )
            plan = _Plan(product, None, w)
        _PLANS.keep(key, plan)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given[:3], block_n, block_k, given[3]), plan)
    return _launch(plan, x_MK, codes, scale, bias)


def _dequantize_launch(codes: Tensor, scale: Tensor, block_n: int, block_k: int) -> launch.Launch:
    """Launch with codes (N, K), scale and w (N, K)."""
    N, K = codes.shape
    return launch.Launch(
        _dequantize,
        (triton.cdiv(N, _BLOCK_N) * triton.cdiv(K, _BLOCK_K),),
        (N, K, min(block_n, N), min(block_k, K), scale.shape[1]),
        {
            "MANTISSA": float8.KINDS[codes.dtype].mantissa,
            "NATIVE": float8.converts_float8(codes.device),
            "BLOCK_N": _BLOCK_N,
            "BLOCK_K": _BLOCK_K,
        },
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True},
        codes.device,
    )


def _launch(plan: _Plan, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    if plan.product is not None:
        return plan.product(x, None, codes, scale, bias)
    assert plan.dequantize is not None
    w_NK = plan.w.like(x)
    plan.dequantize(codes, scale, w_NK)
    return linear(x, w_NK, bias)
