"""Products of float8 tokens with the weights of their experts: forward and dgrad of training.

    y_MN[m] = (a_MK[m] * a_scale[m]) @ (b_ENK[e] * b_scale_EN[e]).T
                                                        offsets[e-1] <= m < offsets[e]

M tokens sorted by expert, N rows of an expert's b, K features that both share, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops import layout, products
from ao_kernels.ops.experts import rows_of
from ao_kernels.registry import op


@op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor offsets, "
    "ScalarType? out_dtype=None, bool fast_accum=False) -> Tensor",
    tensors=(),
    inline=False,
)
def float8_grouped_matmul(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
) -> Tensor:
    """Multiply each token's codes by the codes of its expert.

    y[m, n] = (sum_k a[m, k] * b[e, n, k]) * a_scale[m] * b_scale[e, n]

    forward: a = x_MK, b = w_ENK; dgrad: a = grad_MN, b = w_EKN. The experts' tokens need no
    padding. The host never waits for ``offsets`` on a GPU.

    Args:
        a: (M, K), b: (E, N, K), each float8_e4m3fn or float8_e5m2, any strides.
        a_scale: (M, 1) or (M,), b_scale: (E, N, 1) or (E, N) float32.
        offsets: (E,) int32, ascending: the end of each expert's rows.
        out_dtype: torch.bfloat16 (None), torch.float16 or torch.float32.
        fast_accum: as of ``float8_matmul``.

    Returns:
        (M, N), rounded once; rows behind the last end are 0. Precision as of ``float8_matmul``.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: none.
    """
    y = a.new_zeros((a.shape[0], b.shape[1]), dtype=out_dtype or torch.bfloat16)
    for expert, rows in rows_of(a, offsets):
        scale, b_scale_N = a_scale.reshape(-1, 1)[rows], b_scale[expert].reshape(-1, 1)
        y[rows] = products.multiply(a[rows], scale, b[expert], b_scale_N).to(y.dtype)
    return y


@float8_grouped_matmul.check
def _check(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> None:
    name = "float8_grouped_matmul"
    if a.dim() != 2 or b.dim() != 3 or b.shape[0] == 0 or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"{name}: a is {tuple(a.shape)} and b {tuple(b.shape)}; they must be (M, K) and "
            "(E, N, K) with at least one expert"
        )
    E, N = b.shape[:2]
    check_scaled(name, "a", a, a_scale, a.shape[:1])
    check_scaled(name, "b", b, b_scale, b.shape[:2])
    check_ends(name, offsets, E)
    products.check_result(name, None, N, out_dtype)
    layout.check_devices(name, a, a_scale=a_scale, b=b, b_scale=b_scale, offsets=offsets)


def check_scaled(op: str, name: str, codes: Tensor, scale: Tensor, rows: torch.Size) -> None:
    """Codes of a float8 and a float32 scale for each of ``rows``."""
    if codes.dtype not in layout.FLOAT8_DTYPES:
        allowed = " or ".join(map(str, layout.FLOAT8_DTYPES))
        raise TypeError(
            f"{op}: {name} has dtype {codes.dtype}; both operands must be quantized, {allowed}"
        )
    if scale.dtype != torch.float32 or scale.shape not in (rows, (*rows, 1)):
        raise ValueError(
            f"{op}: {name}_scale is {tuple(scale.shape)} {scale.dtype}; it must be "
            f"{(*rows, 1)} of torch.float32"
        )


def check_ends(op: str, offsets: Tensor, n_experts: int) -> None:
    """offsets (E,) int32."""
    if offsets.dtype != torch.int32:
        raise TypeError(f"{op}: offsets have dtype {offsets.dtype}; they must be torch.int32")
    if offsets.shape != (n_experts,):
        raise ValueError(
            f"{op}: offsets have shape {tuple(offsets.shape)}; with {n_experts} experts they must "
            f"be ({n_experts},): the end of each expert's rows"
        )


@float8_grouped_matmul.fake
def _fake(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype or torch.bfloat16)
