"""float8 weight-only linear in the compiled CUDA extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda, triton
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda import dequantized
from ao_kernels.cuda.weight import FEW_TOKENS, many_tokens_refusal, refusal, tokens_of
from ao_kernels.ops.float8_linear import float8_linear

_EXACT_TOKENS = 512  # up to which Triton's kernel multiplies exact weights


def _supports(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> str | None:
    few = not x.shape[-1] or tokens_of(x) <= FEW_TOKENS
    check = refusal if few else many_tokens_refusal
    return check(x, codes, scale, None, block_k, bias, "block_k")


@float8_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.float8_linear, few=FEW_TOKENS
)
def _run(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> Tensor:
    y = _cuda.float8_linear(
        0, aligned(x), aligned(codes), aligned(scale), block_n, block_k, aligned(bias)
    )
    assert y is not NotImplemented
    return y


def _dequantizes(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> str | None:
    reason = dequantized.refusal(x, codes, scale, None, bias)
    if reason is None and not triton.unavailable:
        if x.dtype != torch.bfloat16:
            reason = f"Triton's kernel multiplies {x.dtype} tokens with exact weights"
        elif tokens_of(x) <= _EXACT_TOKENS:
            reason = f"Triton's kernel multiplies up to {_EXACT_TOKENS} tokens with exact weights"
    return reason


@float8_linear.kernel("cuda:dequantize", device="cuda", supports=_dequantizes)
def _run_dequantized(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> Tensor:
    return dequantized.linear(x, codes, scale, None, 0, block_k, bias, block_n)
