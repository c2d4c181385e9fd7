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


def both(
    x: Tensor, outputs: str, quantize: Quantize, *, by_column: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and scale of x, and of x transposed, by ``quantize``; empty where not wanted.

    ``by_column``: scales lie column by column.
    """
    ready = pad(x)

    def found(wanted: bool, ready: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = quantize(ready if wanted else ready[..., :0, :0])
        if not wanted:
            return codes.new_empty(0), scale.new_empty(0)
        scale = scale.mT.contiguous().mT if by_column else scale.contiguous()
        return codes.contiguous(), scale

    return *found(outputs != "columns", ready), *found(outputs != "rows", ready.mT)


def room(
    x: Tensor,
    outputs: str,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    scales: Callable[[int, int], tuple[int, int]],
    *,
    by_column: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`both` gives, without data. ``scales``: the scales' shape for codes of a shape."""
    *experts, M, K = x.shape
    M, K = padded(M), padded(K)

    def of(wanted: bool, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        if not wanted:
            return x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=scale_dtype)
        R, G = scales(rows, columns)
        shape = (*experts, G, R) if by_column else (*experts, R, G)
        scale = x.new_empty(shape, dtype=scale_dtype)
        codes = x.new_empty((*experts, rows, columns), dtype=dtype)
        return codes, scale.mT if by_column else scale

    return *of(outputs != "columns", M, K), *of(outputs != "rows", K, M)
