"""int4 weight-only linear in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda, triton
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda import dequantized
from ao_kernels.cuda.weight import FEW_TOKENS, many_tokens_refusal, refusal, tokens_of
from ao_kernels.ops.int4_linear import int4_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    few = not x.shape[-1] or tokens_of(x) <= FEW_TOKENS
    return (refusal if few else many_tokens_refusal)(x, codes, scale, zero, group_size, bias)


@int4_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.int4_linear, few=FEW_TOKENS
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    y = _cuda.int4_linear(
        0, aligned(x), aligned(codes), aligned(scale), aligned(zero), group_size, aligned(bias)
    )
    assert y is not NotImplemented
    return y


def _dequantizes(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    reason = dequantized.refusal(x, codes, scale, zero, bias)
    if reason is None and tokens_of(x) <= 64 and not triton.unavailable:
        reason = "Triton's kernel is faster with up to 64 tokens"
    return reason


@int4_linear.kernel("cuda:dequantize", device="cuda", supports=_dequantizes)
def _run_dequantized(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    return dequantized.linear(x, codes, scale, zero, 4, group_size, bias)
