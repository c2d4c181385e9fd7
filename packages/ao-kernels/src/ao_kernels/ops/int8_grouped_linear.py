"""int8 weight-only linear of a mixture of experts.

    y_TN[t] = w_NK[e] @ x_K[t] + bias_N[e]        w = code * scale

T tokens sorted by expert, E experts, N output features, K input features, G = ceil(K / group_size)
groups.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout
from ao_kernels.ops.int8_linear import int8_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, int group_size, "
    "Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def int8_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with 8-bit weights; activations stay at their precision.

    y[t, n] = sum_g scale[e, n, g] * (sum_{k in g} code[e, n, k] * x[t, k]) + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, K) int8.
        scale: (E or 1, N or 1, G) bfloat16 or float32.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        offsets: (E,) int32, ascending: the end of each expert's rows, as ``offs`` of
            torch.nn.functional.grouped_mm. Ends beyond T count as T.
        bias: (E, N) of a floating dtype, or None.

    Returns:
        (T, N) in the dtype of x. Rows from offsets[-1] on are zeros. Sums are float32.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w of its expert) and bias.
    """
    return experts.each(int8_linear.reference, x, (codes, scale, group_size), offsets, bias)


@int8_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "int8_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale)
    layout.check_int8(name, codes[0], scale[0], group_size, x.shape[1])


experts.derive(int8_grouped_linear, int8_linear)
