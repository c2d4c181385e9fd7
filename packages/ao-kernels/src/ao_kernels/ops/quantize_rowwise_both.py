"""An operand of training to float8 or int8, one scale a row, in both directions.

    x_MK ~ codes_MK * scale_M = (codes_KM * scale_K).T

M tokens (or rows of a weight), K features, E experts; codes are padded to multiples of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import directions, layout
from ao_kernels.registry import op


@op(
    '(Tensor x, ScalarType dtype, bool power_of_two=False, str outputs="both") '
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tensors=(),
)
def quantize_rowwise_both(
    x: Tensor, dtype: torch.dtype, power_of_two: bool = False, outputs: str = "both"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize each row of ``x`` with a scale of its own and, independently, each column.

    float8  s = max(amax|x| / max8, tiny), rounded up to a power of two with ``power_of_two``
            code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny), the same
            code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md. x counts as padded with zeros to (M16, K16), multiples of 16.

    Args:
        x: (M, K), or (E, M, K) for matrices of their own, float32, bfloat16 or float16, any
        strides. float64 runs the reference, and is rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        outputs: "both", "rows" or "columns".

    Returns:
        codes (M16, K16) and scale (M16, 1) of the rows; codes (K16, M16) and scale (K16, 1) of the
        columns; with E in front where x has it. Contiguous; those that are not wanted are empty. A
        row or column that holds NaN or inf has a NaN scale, and NaN codes, or zero codes of int8.
        Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """

    def quantize(ready: Tensor) -> tuple[Tensor, Tensor]:
        block = (1,) * (ready.dim() - 1) + (ready.shape[-1],)
        return quantize_blocks(ready, block=block, dtype=dtype, power_of_two=power_of_two)

    return directions.both(x, outputs, quantize)


@quantize_rowwise_both.check
def _check(x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str) -> None:
    directions.check("quantize_rowwise_both", x, outputs, most_dims=3)
    layout.check_code_dtype("quantize_rowwise_both", dtype)


@quantize_rowwise_both.fake
def _fake(
    x: Tensor, dtype: torch.dtype, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return directions.room(x, outputs, dtype, torch.float32, lambda rows, columns: (rows, 1))
