"""Products over the tokens of each expert: the gradient of the experts' weights.

    y_ENK[e] = (a_NP[:, e's] * a_scale_EN[e]) @ (b_KP[:, e's] * b_scale_EK[e]).T

P places of tokens, sorted by expert; N rows of a, K rows of b, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops import layout, products
from ao_kernels.ops.experts import rows_of
from ao_kernels.ops.float8_grouped_matmul import check_ends, check_scaled
from ao_kernels.registry import op


@op(
    "(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor ends, "
    "ScalarType? out_dtype=None, bool fast_accum=False) -> Tensor",
    tensors=(),
    inline=False,
)
def float8_grouped_wgrad(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
) -> Tensor:
    """Multiply rows of codes by rows of codes, over the tokens of each expert.

    y[e, n, k] = (sum_p a[n, p] * b[k, p]) * a_scale[e, n] * b_scale[e, k]
                                                        ends[e-1] <= p < ends[e]

    a is the gradient grad_NP and b the activation x_KP, transposed, as ``quantize_grouped_both``
    gives them with their scales and ``ends``. The host never waits for ``ends`` on a GPU.

    Args:
        a: (N, P), b: (K, P), each float8_e4m3fn or float8_e5m2, any strides.
        a_scale: (E, N), b_scale: (E, K) float32.
        ends: (E,) int32, ascending: the end of each expert's places, multiples of 32. Places
            of no token hold zero codes, as ``quantize_grouped_both`` leaves them.
        out_dtype: torch.bfloat16 (None), torch.float16 or torch.float32.
        fast_accum: as of ``float8_matmul``.

    Returns:
        (E, N, K), rounded once; 0 for experts without tokens. Precision as of ``float8_matmul``.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: none.
    """
    E = ends.shape[0]
    y = a.new_zeros((E, a.shape[0], b.shape[0]), dtype=out_dtype or torch.bfloat16)
    for expert, places in rows_of(a.T, ends):
        scales = a_scale[expert].reshape(-1, 1), b_scale[expert].reshape(-1, 1)
        found = products.multiply(a[:, places], scales[0], b[:, places], scales[1])
        y[expert] = found.to(y.dtype)
    return y


@float8_grouped_wgrad.check
def _check(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> None:
    name = "float8_grouped_wgrad"
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name}: a is {tuple(a.shape)} and b {tuple(b.shape)}; they must be (N, P) and (K, P)"
        )
    if ends.dim() != 1 or ends.shape[0] == 0:
        raise ValueError(f"{name}: ends have shape {tuple(ends.shape)}; they must be (E,), E > 0")
    E = ends.shape[0]
    check_ends(name, ends, E)
    check_scaled(name, "a", a, a_scale, torch.Size((E, a.shape[0])))
    check_scaled(name, "b", b, b_scale, torch.Size((E, b.shape[0])))
    products.check_result(name, None, b.shape[0], out_dtype)
    layout.check_devices(name, a, a_scale=a_scale, b=b, b_scale=b_scale, ends=ends)


@float8_grouped_wgrad.fake
def _fake(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    ends: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    shape = (ends.shape[0], a.shape[0], b.shape[0])
    return a.new_empty(shape, dtype=out_dtype or torch.bfloat16)
