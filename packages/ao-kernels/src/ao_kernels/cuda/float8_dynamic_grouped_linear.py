"""Linear of float8 activations and float8 weights of experts in the compiled CUDA extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cpu.weight import aligned
from ao_kernels.cuda.experts import bytes_refusal, rows_of
from ao_kernels.ops.float8_dynamic_grouped_linear import float8_dynamic_grouped_linear

_LIBRARY_ROWS = 128  # kLibraryRows in float8_dynamic_grouped_linear.cpp
_LIBRARY_FEATURES = 4096


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    offsets: Tensor,
    bias: Tensor | None,
) -> str | None:
    reason = bytes_refusal(x, codes, scale, offsets, bias)
    if reason:
        return reason
    if x.dtype == torch.float32:
        return (
            "x has dtype torch.float32, for which float8 products on the GPU are not exact enough"
        )
    if codes.dtype != torch.float8_e4m3fn:
        return f"codes have dtype {codes.dtype}; the CUDA kernels take torch.float8_e4m3fn"
    if activation != "row" or scale.shape[2] > 1 or 1 < block_n < codes.shape[1]:
        return "the CUDA kernel of experts takes scales of rows or, of weights, of tensors"
    rows = rows_of(x, codes)
    if rows > _LIBRARY_ROWS and _library_takes(x, codes, scale, bias):
        return (
            f"an expert has {rows} rows, on average; torch._scaled_grouped_mm is taken for more "
            f"than {_LIBRARY_ROWS}"
        )
    return None


def _library_takes(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> bool:
    E, N = codes.shape[:2]
    whole = scale.shape == (E, N, 1) and N % 16 == 0 and x.shape[1] <= _LIBRARY_FEATURES
    return x.dtype == torch.bfloat16 and bias is None and whole


@float8_dynamic_grouped_linear.kernel(
    "cuda", device="cuda", supports=_supports, direct=_cuda.float8_dynamic_grouped_linear
)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor:
    ready = aligned(x), aligned(codes), aligned(scale)
    y = _cuda.float8_dynamic_grouped_linear(
        0, *ready, block_n, block_k, activation, aligned(offsets), aligned(bias)
    )
    assert y is not NotImplemented
    return y
