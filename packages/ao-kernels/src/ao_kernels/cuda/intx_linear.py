"""intx weight-only linear in the compiled CUDA extension."""

from __future__ import annotations

from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda import dequantized
from ao_kernels.cuda.weight import FEW_TOKENS, refusal
from ao_kernels.ops.intx_linear import intx_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return refusal(x, codes, scale, zero, group_size, bias)


@intx_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.intx_linear, few=FEW_TOKENS
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    y = _cuda.intx_linear(
        0,
        aligned(x),
        aligned(codes),
        aligned(scale),
        aligned(zero),
        bits,
        group_size,
        aligned(bias),
    )
    assert y is not NotImplemented
    return y


def _dequantizes(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return dequantized.refusal(x, codes, scale, zero, bias)


@intx_linear.kernel("cuda:dequantize", device="cuda", supports=_dequantizes)
def _run_dequantized(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    return dequantized.linear(x, codes, scale, zero, bits, group_size, bias)
