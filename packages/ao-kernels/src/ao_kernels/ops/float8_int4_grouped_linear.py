"""Linear of per-token float8 activations and 4-bit weights of experts.

    y_TN[t] = w_NK[e] @ (q_K[t] * s[t]) + bias_N[e]        x ~ q * s, w = (code - zero) * scale

T tokens sorted by expert, E experts, N output features, K input features, G = ceil(K / group_size)
groups.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout
from ao_kernels.ops.float8_int4_linear import float8_int4_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int group_size, "
    "Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def float8_int4_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with 4-bit weights whose activations are quantized to float8 e4m3,
    token by token, on the way.

    s[t] = max(amax_k |x[t, k]| / 448, smallest normal float32)
    q = float8(clamp(x * (1/s), -448, 448))
    w[e, n, k] = (code[e, n, k] - zero[e, n, g]) * scale[e, n, g]
    y[t, n] = s[t] * sum_k q[t, k] * w[e, n, k] + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, ceil(K/8)*4) uint8; byte j of a row is code[2j] | code[2j+1] << 4.
        scale: (E or 1, N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 8. May be fractional.
        group_size: codes that share a scale: a multiple of 8, or at least K.
        offsets: (E,) int32, ascending: the end of each expert's rows, as ``offs`` of
            torch.nn.functional.grouped_mm. Ends beyond T count as T.
        bias: (E, N) of a floating dtype, or None.

    Returns:
        (T, N) in the dtype of x. Rows from offsets[-1] on are zeros. Sums have at least float32's
        precision. A token that holds NaN or inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w of its expert, straight through the rounding) and bias.
    """
    return experts.each(
        float8_int4_linear.reference, x, (codes, scale, zero, group_size), offsets, bias
    )


@float8_int4_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "float8_int4_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale, zero=zero)
    layout.check_intx(
        name, codes[0], scale[0], None if zero is None else zero[0], 4, group_size, x.shape[1]
    )


experts.derive(float8_int4_grouped_linear, float8_int4_linear)
