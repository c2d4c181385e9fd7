"""float8 weight-only linear of a mixture of experts.

    y_TN[t] = w_NK[e] @ x_K[t] + bias_N[e]        w = code * scale

T tokens sorted by expert, E experts, N output features, K input features. A block of block_n x
block_k codes shares a scale.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout
from ao_kernels.ops.float8_linear import float8_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, int block_n, int block_k, "
    "Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def float8_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with float8 weights; activations stay at their precision.

    y[t, n] = sum_k x[t, k] * codes[e, n, k] * scale[e, n // block_n, k // block_k] + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, K) float8_e4m3fn or float8_e5m2.
        scale: (E or 1, ceil(N / block_n), ceil(K / block_k)) float32.
        block_n: rows that share a scale; at least N when all do.
        block_k: input features that share a scale: a multiple of 8, or at least K for whole rows.
        offsets: (E,) int32, ascending: the end of each expert's rows, as ``offs`` of
            torch.nn.functional.grouped_mm. Ends beyond T count as T.
        bias: (E, N) of a floating dtype, or None.

    Returns:
        (T, N) in the dtype of x. Rows from offsets[-1] on are zeros. Sums have at least float32's
        precision.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w of its expert) and bias.
    """
    return experts.each(float8_linear.reference, x, (codes, scale, block_n, block_k), offsets, bias)


@float8_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "float8_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale)
    layout.check_float8(name, codes[0], scale[0], block_n, block_k, x.shape[1])


experts.derive(float8_grouped_linear, float8_linear)
