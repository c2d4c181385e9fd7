"""int8 weight-only linear in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda import dequantized
from ao_kernels.cuda.weight import FEW_TOKENS, many_tokens_refusal, refusal, tokens_of
from ao_kernels.ops.int8_linear import int8_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    few = not x.shape[-1] or tokens_of(x) <= FEW_TOKENS
    return (refusal if few else many_tokens_refusal)(x, codes, scale, None, group_size, bias)


@int8_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.int8_linear, few=FEW_TOKENS
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    y = _cuda.int8_linear(0, aligned(x), aligned(codes), aligned(scale), group_size, aligned(bias))
    assert y is not NotImplemented
    return y


def _dequantizes(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return dequantized.refusal(x, codes, scale, None, bias)


@int8_linear.kernel("cuda:dequantize", device="cuda", supports=_dequantizes)
def _run_dequantized(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    return dequantized.linear(x, codes, scale, None, 0, group_size, bias)
