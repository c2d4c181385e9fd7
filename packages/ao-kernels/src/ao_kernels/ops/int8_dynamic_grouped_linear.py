"""Linear of per-token int8 activations and int8 weights of experts.

    y_TN[t] = (c_NK[e] @ q_K[t]) * s[t] * scale_N[e] + bias_N[e]        x ~ q * s, w = c * scale

T tokens sorted by expert, E experts, N output features, K input features.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout
from ao_kernels.ops.int8_dynamic_linear import int8_dynamic_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def int8_dynamic_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with int8 weights; activations are quantized to int8, token by
    token.

    s[t] = max(amax_k |x[t, k]| / 127, smallest normal float32)
    q[t, k] = round_half_even(x[t, k] * (1/s[t])), in [-127, 127]
    y[t, n] = s[t] * scale[e, n] * sum_k q[t, k] * codes[e, n, k] + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, K) int8.
        scale: (E or 1, N or 1, 1) float32 or bfloat16.
        offsets: (E,) int32, ascending: the end of each expert's rows, as ``offs`` of
            torch.nn.functional.grouped_mm. Ends beyond T count as T.
        bias: (E, N) of a floating dtype, or None.

    Returns:
        (T, N) in the dtype of x. Rows from offsets[-1] on are zeros. Products of codes are summed
        exactly. A token that holds NaN or inf gives NaN.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w of its expert, straight through the rounding) and bias.
    """
    return experts.each(int8_dynamic_linear.reference, x, (codes, scale), offsets, bias)


@int8_dynamic_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "int8_dynamic_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale)
    layout.check_int8(name, codes[0], scale[0], max(x.shape[1], 1), x.shape[1])


experts.derive(int8_dynamic_grouped_linear, int8_dynamic_linear)
