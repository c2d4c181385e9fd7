"""Linear of float8 activations, quantized on every call, and float8 weights of experts.

    y_TN[t] = (c_NK[e] * scale[e]) @ (q_K[t] * s) + bias_N[e]        x ~ q * s, w = c * scale

T tokens sorted by expert, E experts, N output features, K input features. A block of block_n x
block_k codes shares a scale.
"""

from __future__ import annotations

from torch import Tensor

from ao_kernels.ops import experts, layout, tokens
from ao_kernels.ops.float8_dynamic_linear import float8_dynamic_linear
from ao_kernels.registry import op


@op(
    "(Tensor x, Tensor codes, Tensor scale, int block_n, int block_k, str activation, "
    "Tensor offsets, Tensor? bias=None) -> Tensor",
    tensors=("x", "bias"),
    inline=False,
)
def float8_dynamic_grouped_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    offsets: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Linear layers of experts with float8 weights whose activations are quantized to float8 e4m3
    on the way.

    s = max(amax |x| / 448, smallest normal float32) of each block of activations
    q = float8(clamp(x * (1/s), -448, 448))
    y[t, n] = sum_k q[t, k] * s * codes[e, n, k] * scale[e, n // block_n, k // block_k] + bias[e, n]

    Args:
        x: (T, K) float32, bfloat16 or float16, any strides: tokens of expert 0, of expert 1, and
            so on. float64 runs the reference.
        codes: (E, N, K) float8_e4m3fn or float8_e5m2.
        scale: (E or 1, ceil(N / block_n), ceil(K / block_k)) float32.
        block_n: rows that share a scale; at least N when all do.
        block_k: input features that share a scale: a multiple of 8, or at least K for whole rows.
        activation: which activations share s: "tensor" (all tokens of an expert), "row" (a token)
            or "block" (block_k input features of a token).
        offsets: (E,) int32, ascending: the end of each expert's rows, as ``offs`` of
            torch.nn.functional.grouped_mm. Ends beyond T count as T.
        bias: (E, N) of a floating dtype, or None.

    Returns:
        (T, N) in the dtype of x. Rows from offsets[-1] on are zeros. Sums have at least float32's
        precision, but for more than 64 tokens an expert, on average, of bfloat16 or float16 on GPUs
        that multiply float8: about 14 bits for up to 128 products of codes, then float32
        (docs/numerics.md). NaN or inf give NaN for their token, and with activation "tensor" for
        all tokens of their expert.

    Raises:
        TypeError, ValueError: arguments that do not fit together.
        RuntimeError: arguments on different devices.

    Gradients: with respect to x (grad_y @ w of its expert, straight through the rounding) and bias.
    """
    return experts.each(
        float8_dynamic_linear.reference,
        x,
        (codes, scale, block_n, block_k, activation),
        offsets,
        bias,
    )


@float8_dynamic_grouped_linear.check
def _check(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_n: int,
    block_k: int,
    activation: str,
    offsets: Tensor,
    bias: Tensor | None,
) -> None:
    name = "float8_dynamic_grouped_linear"
    experts.check_experts(name, x, codes, offsets, bias, scale=scale)
    layout.check_float8(name, codes[0], scale[0], block_n, block_k, x.shape[1])
    tokens.check_float8_activation(name, activation)


experts.derive(float8_dynamic_grouped_linear, float8_dynamic_linear)
