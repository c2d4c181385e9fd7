"""Activations or weights to float8 or int8, one scale a block.

    x_MK ~ codes_MK * scale_RG        of the block (m // block_rows, k // block_cols)

M rows, K columns, R = ceil(M / block_rows), G = ceil(K / block_cols).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import layout
from ao_kernels.registry import op


@op(
    "(Tensor x, ScalarType dtype, int block_rows, int block_cols) -> (Tensor, Tensor)",
    tensors=(),
)
def quantize_block(
    x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int
) -> tuple[Tensor, Tensor]:
    """Quantize each block of the last two dimensions of ``x`` with a scale of its own.

    float8  s = max(amax|x| / max8, tiny);  code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny);   code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md. Blocks of 1 x 128 are usual for activations, 128 x 128 for weights.

    Args:
        x: (..., M, K) float32, bfloat16 or float16, any strides. float64 runs the reference, and is
        rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        block_rows, block_cols: at least 1; blocks at the ends of M and K may be smaller.

    Returns:
        codes (..., M, K) of ``dtype``, contiguous, and scale (..., R, G) float32. A block that
        holds NaN or inf has a NaN scale, and NaN codes, or zero codes of int8. Every kernel gives
        the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    block = (1,) * (x.dim() - 2) + (block_rows, block_cols)
    codes, scale = quantize_blocks(x.detach(), block=block, dtype=dtype)
    return codes.contiguous(), scale


@quantize_block.check
def _check(x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int) -> None:
    layout.check_activation("quantize_block", x)
    layout.check_code_dtype("quantize_block", dtype)
    if x.dim() < 2:
        raise ValueError(
            f"quantize_block: x has shape {tuple(x.shape)}; blocks have two dimensions"
        )
    if block_rows < 1 or block_cols < 1:
        raise ValueError(
            f"quantize_block: blocks of {block_rows} x {block_cols}; both must be at least 1"
        )


@quantize_block.fake
def _fake(x: Tensor, dtype: torch.dtype, block_rows: int, block_cols: int) -> tuple[Tensor, Tensor]:
    groups = (-(-x.shape[-2] // block_rows), -(-x.shape[-1] // block_cols))
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(
        (*x.shape[:-2], *groups), dtype=torch.float32
    )
