"""intx weight-only linear of a mixture of experts: 1 to 8 bits a weight.

    y_TN[t] = w_NK[e] @ x_K[t] + bias_N[e]        w = (code - zero) * scale

T tokens sorted by expert, E experts, N output features, K input features, G = ceil(K / group_size)
groups, b bits a code.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout
from ao_kernels.ops.intx_linear import intx_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, Tensor? zero, int bits, int group_size, "
    "Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def intx_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with weights of 1 to 8 bits; activations stay at their precision.

    w[e, n, k] = (code[e, n, k] - zero[e, n, g]) * scale[e, n, g]
    y[t, n] = sum_k w[e, n, k] * x[t, k] + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, ceil(K/8)*b) uint8; a row is a little-endian bit stream, code k in bits
            [k*b, (k+1)*b).
        scale: (E or 1, N or 1, G) bfloat16 or float32.
        zero: like scale, or None for 2**(b-1). May be fractional.
        bits: b, 1 to 8.
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
    return experts.each(
        intx_linear.reference, x, (codes, scale, zero, bits, group_size), offsets, bias
    )


@intx_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "intx_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale, zero=zero)
    layout.check_intx(
        name, codes[0], scale[0], None if zero is None else zero[0], bits, group_size, x.shape[1]
    )


experts.derive(intx_grouped_linear, intx_linear)
