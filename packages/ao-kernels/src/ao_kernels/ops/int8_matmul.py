"""Product of two int8 matrices with their scales: each product of an int8 training step.

    y_MN = (a_MK * a_scale_M) @ (b_NK * b_scale_N).T + bias_N

M rows of a, N rows of b, K features that both share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops import layout, products
from ao_kernels.registry import op


@op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias=None, "
    "ScalarType? out_dtype=None) -> Tensor",
    tensors=(),
)
def int8_matmul(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply rows of int8 codes by rows of int8 codes.

    y[m, n] = (sum_k a[m, k] * b[n, k]) * a_scale[m] * b_scale[n] + bias[n]

    Args:
        a: (M, K), b: (N, K) int8, any strides, as ``quantize_rowwise_both`` gives them.
        a_scale, b_scale: (R, 1), (R,), or one element for all, float32.
        bias: (N,) of a floating dtype, or None.
        out_dtype: torch.bfloat16 (None), torch.float16 or torch.float32.

    Returns:
        (M, N), rounded once. The reference adds in float64; sums of kernels are exact integers.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: none.
    """
    dtype = torch.float32 if a.shape[1] <= _EXACT_IN_FLOAT32 else torch.float64
    y = (a.to(dtype) @ b.to(dtype).T).float()
    return products.finish(y * a_scale.reshape(-1, 1) * b_scale.reshape(1, -1), bias, out_dtype)


_EXACT_IN_FLOAT32 = 2**24 // 127**2  # products of codes whose sum float32 holds


@int8_matmul.check
def _check(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    name = "int8_matmul"
    for operand, codes, scale in (("a", a, a_scale), ("b", b, b_scale)):
        if codes.dtype != torch.int8 or codes.dim() != 2:
            raise TypeError(
                f"{name}: {operand} is {tuple(codes.shape)} {codes.dtype}; both operands must be "
                "matrices of torch.int8 codes"
            )
        R = codes.shape[0]
        if scale.dtype != torch.float32 or not (
            scale.numel() == 1 or scale.shape in ((R,), (R, 1))
        ):
            raise ValueError(
                f"{name}: {operand}_scale is {tuple(scale.shape)} {scale.dtype}; codes of {R} rows "
                f"take {(R, 1)}, or one element, of torch.float32"
            )
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name}: a is {tuple(a.shape)} and b {tuple(b.shape)}; both must have K columns"
        )
    products.check_result(name, bias, b.shape[0], out_dtype)
    layout.check_devices(name, a, a_scale=a_scale, b=b, b_scale=b_scale, bias=bias)


@int8_matmul.fake
def _fake(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16)
