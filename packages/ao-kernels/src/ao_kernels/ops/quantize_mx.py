"""An operand of training to MXFP8, in both directions.

    x_MK ~ codes_MK * scale_MG = (codes_KM * scale_KH).T

M tokens (or rows of a weight), K features, G = ceil(K / 32), H = ceil(M / 32); codes are padded to
multiples of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core import mx
from ao_kernels.ops import directions
from ao_kernels.registry import op


@op(
    '(Tensor x, ScalarType dtype, str outputs="both") -> (Tensor, Tensor, Tensor, Tensor)',
    tensors=(),
)
def quantize_mx(
    x: Tensor, dtype: torch.dtype, outputs: str = "both"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize blocks of 32 elements with a power of two each, along K and, transposed, along M.

    e = clamp(floor(log2(amax|x|)) - emax, -127, 127);  code = float8(clamp(x / 2**e, -max8, max8))

    with emax 8 and max8 448 for e4m3, 15 and 57344 for e5m2: OCP Microscaling Formats (MX)
    Specification v1.0, section 6.3; see docs/numerics.md. x counts as padded with zeros to (M16,
    K16), multiples of 16.

    Args:
        x: (M, K), or (E, M, K) for matrices of their own, float32, bfloat16 or float16, any
        strides. float64 runs the reference, and is rounded to float32 first.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        outputs: "both", "rows" or "columns".

    Returns:
        codes (M16, K16) and scale (M16, G) of the rows; codes (K16, M16) and scale (K16, H) of the
        columns; with E in front where x has it. Scales are float8_e8m0fnu. Contiguous; those that
        are not wanted are empty. A block that holds NaN or inf has a NaN scale and NaN codes.
        Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    return directions.both(x, outputs, lambda ready: mx.quantize_mx(ready, dtype=dtype))


@quantize_mx.check
def _check(x: Tensor, dtype: torch.dtype, outputs: str) -> None:
    directions.check("quantize_mx", x, outputs, most_dims=3)
    directions.check_float8_dtype("quantize_mx", dtype)


@quantize_mx.fake
def _fake(x: Tensor, dtype: torch.dtype, outputs: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return directions.room(
        x,
        outputs,
        dtype,
        torch.float8_e8m0fnu,
        lambda rows, columns: (rows, -(-columns // mx.MX_BLOCK)),
    )
