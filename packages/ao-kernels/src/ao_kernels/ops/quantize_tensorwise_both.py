"""An operand of training to float8 or int8, one scale for the whole tensor, in both directions.

    x_MK ~ codes_MK * scale = codes_KM.T * scale

M tokens (or rows of a weight), K features; codes are padded to multiples of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import directions, layout
from ao_kernels.registry import op


@op(
    "(Tensor x, ScalarType dtype, Tensor? scale=None, bool power_of_two=False, "
    'str outputs="both") -> (Tensor, Tensor, Tensor)',
    tensors=(),
)
def quantize_tensorwise_both(
    x: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize ``x`` with one scale, its own or a given one, row by row and transposed.

    float8  s = max(amax|x| / max8, tiny), rounded up to a power of two with ``power_of_two``
            code = float8(clamp(x / s, -max8, max8))
    int8    s = max(amax|x| / 127, tiny), the same
            code = clamp(round_half_even(x * (1/s)), -127, 127)

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md. x counts as padded with zeros to (M16, K16), multiples of 16.

    Args:
        x: (M, K) float32, bfloat16 or float16, any strides. float64 runs the reference, and is
        rounded to float32 first.
        dtype: torch.float8_e4m3fn, torch.float8_e5m2 or torch.int8.
        scale: one float32 element on the device of x: s, taken as it is, or None.
        power_of_two: of a scale that is not given.
        outputs: "both", "rows" (no transposed codes) or "columns" (those alone).

    Returns:
        codes (M16, K16), transposed codes (K16, M16), both contiguous, and scale () float32, a new
        tensor. Codes that are not wanted are empty. If x holds NaN or inf, its own scale is
        NaN and codes are NaN, or 0 in int8; with a given scale, only NaN and inf become NaN (0 in
        int8), and other elements beyond the largest code take that. Every kernel gives the same
        bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    ready = directions.pad(x)
    given = None if scale is None else scale.detach().reshape(1, 1)
    if given is not None:
        ready = torch.where(ready.isfinite(), ready, torch.nan)
    block = (ready.shape[0], ready.shape[1])
    codes, used = quantize_blocks(
        ready, block=block, dtype=dtype, scale=given, power_of_two=power_of_two
    )
    nothing = codes.new_empty(0)
    return (
        nothing if outputs == "columns" else codes.contiguous(),
        codes.new_empty(0) if outputs == "rows" else codes.mT.contiguous(),
        used.reshape(()).clone(),
    )


@quantize_tensorwise_both.check
def _check(
    x: Tensor, dtype: torch.dtype, scale: Tensor | None, power_of_two: bool, outputs: str
) -> None:
    name = "quantize_tensorwise_both"
    directions.check(name, x, outputs)
    layout.check_code_dtype(name, dtype)
    if scale is not None and (scale.dtype != torch.float32 or scale.numel() != 1):
        raise ValueError(
            f"{name}: scale is {tuple(scale.shape)} {scale.dtype}; it must be one float32 element, "
            f"or None for the scale of x itself"
        )


@quantize_tensorwise_both.fake
def _fake(
    x: Tensor, dtype: torch.dtype, scale: Tensor | None, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor]:
    codes, _, codes_t, _ = directions.room(
        x, outputs, dtype, torch.float32, lambda rows, columns: (1, 1)
    )
    return codes, codes_t, x.new_empty((), dtype=torch.float32)
