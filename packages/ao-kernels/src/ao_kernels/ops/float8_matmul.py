"""Product of two float8 matrices with their scales: each product of a training step.

    y_MN = (a_MK * a_scale) @ (b_NK * b_scale).T + bias_N

M rows of a, N rows of b, K features that both share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops import layout, products
from ao_kernels.registry import op


@op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor? bias=None, "
    "ScalarType? out_dtype=None, bool fast_accum=False) -> Tensor",
    tensors=(),
)
def float8_matmul(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
) -> Tensor:
    """Multiply rows of float8 codes by rows of float8 codes.

    y[m, n] = sum_k (a[m, k] * a_scale[.]) * (b[n, k] * b_scale[.]) + bias[n]

    forward: a = x_MK, b = w_NK; dgrad: a = grad_MN, b = w_KN; wgrad: a = grad_NM, b = x_KM, as the
    ``quantize_*_both`` ops give them. The shape of a scale tells which elements share it:

        () or one element   all of them                 torch.float32
        (R, 1) or (R,)      a row                       torch.float32
        (R, ceil(K/128))    128 elements of a row       torch.float32
        (ceil(R/128), ceil(K/128))    128 x 128         torch.float32
        (R, ceil(K/32))     32 elements of a row, MX    torch.float8_e8m0fnu

    Args:
        a: (M, K), b: (N, K), each float8_e4m3fn or float8_e5m2, any strides.
        a_scale, b_scale: of any of the kinds above, also of two kinds; MX goes with MX.
        bias: (N,) of a floating dtype, or None.
        out_dtype: torch.bfloat16 (None), torch.float16 or torch.float32.
        fast_accum: sums may stay in the matrix units, with about 14 bits; see docs/numerics.md.

    Returns:
        (M, N), rounded once. The reference multiplies and adds in float32, so its error is at most
        about K * 2**-24 of the sum of magnitudes. Kernels on GPUs keep about 14 bits of sums of up
        to 128 products, then float32; those of MX multiply in bfloat16, which holds codes * scale
        exactly.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: none; this is what forward and backward of a float8 linear are made of.
    """
    return products.finish(products.multiply(a, a_scale, b, b_scale), bias, out_dtype)


@float8_matmul.check
def _check(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> None:
    name = "float8_matmul"
    products.check_operand(name, "a", a, a_scale)
    products.check_operand(name, "b", b, b_scale)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name}: a is {tuple(a.shape)} and b {tuple(b.shape)}; both must have K columns"
        )
    if (a_scale.dtype == products.E8M0) != (b_scale.dtype == products.E8M0):
        raise TypeError(
            f"{name}: scales are {a_scale.dtype} and {b_scale.dtype}; MX goes with MX only"
        )
    products.check_result(name, bias, b.shape[0], out_dtype)
    layout.check_devices(name, a, a_scale=a_scale, b=b, b_scale=b_scale, bias=bias)


@float8_matmul.fake
def _fake(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16)
