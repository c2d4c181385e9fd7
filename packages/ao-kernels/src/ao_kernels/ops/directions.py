"""Quantized operands of a training step in both directions: what the ``quantize_*_both`` ops share.

M tokens (or rows of a weight), K features. A product multiplies rows by rows, so forward, dgrad and
wgrad need an operand row by row, (M, K), and transposed, (K, M). ``outputs`` says which are made.
Codes are padded to multiples of 16 in both dimensions, M16 and K16, as torch._scaled_mm wants them:
everything is defined as if x had been padded with zeros first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ao_kernels.ops import layout

PADDING = 16
OUTPUTS = ("both", "rows", "columns")

Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]


def check(op: str, x: Tensor, outputs: str, *, most_dims: int = 2) -> None:
    """x (M, K), or (E, M, K) where ``most_dims`` is 3, of a floating dtype; known outputs."""
    layout.check_activation(op, x)
    if not 2 <= x.dim() <= most_dims:
        wanted = "(M, K)" if most_dims == 2 else "(M, K) or (E, M, K)"
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; it must be {wanted}")
    if outputs not in OUTPUTS:
        raise ValueError(f"{op}: outputs is {outputs!r}, not {' or '.join(map(repr, OUTPUTS))}")


def check_float8_dtype(op: str, dtype: torch.dtype) -> None:
    """The float8 that an operand is quantized to."""
    if dtype not in layout.FLOAT8_DTYPES:
        allowed = " or ".join(map(str, layout.FLOAT8_DTYPES))
        raise TypeError(f"{op}: dtype is {dtype}; it must be {allowed}")


def padded(n: int) -> int:
    """n rounded up to :data:`PADDING`."""
    return (n + PADDING - 1) // PADDING * PADDING


def pad(x: Tensor) -> Tensor:
    """(..., M, K) -> (..., M16, K16) float32 with zeros."""
    M, K = x.shape[-2:]
    return torch.nn.functional.pad(x.detach().float(), (0, padded(K) - K, 0, padded(M) - M))


def both(x: Tensor, outputs: str, quantize: Quantize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and scale of x, and of x transposed, by ``quantize``; empty where not wanted."""
    ready = pad(x)
    rows = quantize(ready) if outputs != "columns" else None
    columns = quantize(ready.mT) if outputs != "rows" else None
    found = rows or columns
    assert found is not None
    nothing = tuple(each.new_empty(0) for each in found)
    codes, scale = rows or nothing
    codes_t, scale_t = columns or nothing
    return codes.contiguous(), scale.contiguous(), codes_t.contiguous(), scale_t.contiguous()


def room(
    x: Tensor,
    outputs: str,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    scales: Callable[[int, int], tuple[int, int]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`both` gives, without data. ``scales``: the scales' shape for codes of a shape."""
    *experts, M, K = x.shape
    M, K = padded(M), padded(K)

    def of(wanted: bool, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        shapes = ((rows, columns), scales(rows, columns))
        codes, scale = ((*experts, *shape) if wanted else (0,) for shape in shapes)
        return x.new_empty(codes, dtype=dtype), x.new_empty(scale, dtype=scale_dtype)

    return *of(outputs != "columns", M, K), *of(outputs != "rows", K, M)
