"""Operands of training to float8 or int8, one scale a block of 1 x 128 or 128 x 128, both ways.

    x_MK ~ codes_MK * scale_MG            1 x 128, and codes_KM * scale_KH transposed
    x_MK ~ codes_MK * scale_HG            128 x 128, and the same codes and scales transposed

M tokens (or rows of a weight), K features, G = ceil(K / 128), H = ceil(M / 128); codes are padded
to multiples of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import directions, layout
from ao_kernels.registry import op

BLOCK = 128


@op(
    "(Tensor x, ScalarType dtype, int block_rows, int block_cols, bool power_of_two=False, "
    'str outputs="both") -> (Tensor, Tensor, Tensor, Tensor)',
    tensors=(),
)
def quantize_block_both(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize blocks of ``x`` with a scale each, row by row and transposed.

    float8  s = max(amax|x| / max8, tiny), rounded up to a power of two with ``power_of_two``
            code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny), the same
            code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md. Blocks of 1 x 128 lie along K for the codes, and along M for the transposed
    ones. x counts as padded with zeros to (M16, K16), multiples of 16.

    Args:
        x: (M, K) float32, bfloat16 or float16, any strides. float64 runs the reference, and is
        rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        block_rows, block_cols: 1 and 128, or 128 and 128.
        outputs: "both", "rows" or "columns".

    Returns:
        codes (M16, K16) and their scale, (M16, G) for 1 x 128 or (H, G) for 128 x 128; transposed
        codes (K16, M16) and their scale, (K16, H) or (G, H). Contiguous, but for scales of 1 x 128,
        which lie column by column, as torch._scaled_mm wants them; those that are not wanted are
        empty. A block that holds NaN or inf has a NaN scale, and NaN codes, or zero codes of int8.
        Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    block = (block_rows, block_cols)

    def quantize(ready: Tensor) -> tuple[Tensor, Tensor]:
        return quantize_blocks(ready, block=block, dtype=dtype, power_of_two=power_of_two)

    return directions.both(x, outputs, quantize, by_column=block_rows == 1)


@quantize_block_both.check
def _check(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> None:
    directions.check("quantize_block_both", x, outputs)
    layout.check_code_dtype("quantize_block_both", dtype)
    if block_rows not in (1, BLOCK) or block_cols != BLOCK:
        raise ValueError(
            f"quantize_block_both: blocks of {block_rows} x {block_cols}; allowed are 1 x {BLOCK} "
            f"and {BLOCK} x {BLOCK}"
        )


@quantize_block_both.fake
def _fake(
    x: Tensor,
    dtype: torch.dtype,
    block_rows: int,
    block_cols: int,
    power_of_two: bool,
    outputs: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return directions.room(
        x,
        outputs,
        dtype,
        torch.float32,
        lambda rows, columns: (-(-rows // block_rows), -(-columns // block_cols)),
        by_column=block_rows == 1,
    )
