"""Operands of a training step as codes, and their products, for each kind of scaling.

M tokens, N output features, K input features, E experts. A product multiplies rows by rows, and an
operand is cast in the directions that its products need: `rows` of a tensor (R, C) are codes
(R, C), `columns` are codes of the transposed tensor (C, R), each with a scale of its own. Codes are
padded with zeros to multiples of 16, so products are, too; `product` cuts them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ao_core.numerics import next_power_of_two
from ao_kernels.ops import (
    float8_matmul,
    int8_matmul,
    quantize_block_both,
    quantize_mx,
    quantize_rowwise_both,
    quantize_tensorwise_both,
)

__all__ = ["Codes", "Plan", "cast", "product", "scale_of"]

is_compiling = torch.compiler.is_compiling
BLOCK = 128


class Codes(NamedTuple):
    """A tensor (R, C) as codes: tensor ~ rows * row_scale ~ (columns * column_scale).T; the
    directions that were not asked for are empty."""

    rows: Tensor
    row_scale: Tensor
    columns: Tensor
    column_scale: Tensor


class Plan(NamedTuple):
    """A Float8LinearConfig as the plain values that a call reads; `plan_of` in linear.py."""

    scaling: str
    input_dtype: torch.dtype
    weight_dtype: torch.dtype
    grad_output_dtype: torch.dtype
    power_of_two: bool
    wgrad_is_exact: bool
    fast_accum: bool
    weight_cache: str
    recasts: bool
    emulate: bool


def _op(op: Any) -> Any:
    """What to call: compilers see one op, whichever kernels are loaded by then."""
    return op.overload if is_compiling() else op


Cast = Callable[[Tensor, torch.dtype, bool, str, Tensor | None, bool], Codes]


def cast(
    x_RC: Tensor,
    dtype: torch.dtype,
    plan: Plan,
    outputs: str,
    *,
    scale: Tensor | None = None,
    is_weight: bool = False,
) -> Codes:
    """(R, C) to codes: `outputs` is "rows", "columns" or "both". Rowwise also (E, R, C), expert
    by expert.

    scale: one float32 element, for tensorwise scaling, if it is known; others find their own.
    """
    return _CASTS[plan.scaling](x_RC, dtype, plan.power_of_two, outputs, scale, is_weight)


def scale_of(x: Tensor, dtype: torch.dtype, power_of_two: bool) -> Tensor:
    """The one scale () of a tensor, the bits that `quantize_tensorwise_both` finds."""
    amax = x.detach().abs().amax().float()
    scale = amax / torch.full_like(amax, torch.finfo(dtype).max)
    # NaN for inf and NaN, without a NaN in the graph: it equals nothing, and equal graphs of two
    # layers would not be merged
    tiny = torch.finfo(torch.float32).tiny  # no global: compile(dynamic=True) makes those inputs
    scale = scale.clamp(min=tiny) + (scale - scale)
    return next_power_of_two(scale) if power_of_two else scale


def _tensorwise(
    x_RC: Tensor,
    dtype: torch.dtype,
    power_of_two: bool,
    outputs: str,
    scale: Tensor | None,
    is_weight: bool,
) -> Codes:
    if scale is None and is_compiling() and not is_weight:
        # in the open, so that the compiler finds the largest magnitude where x is made; a weight is
        # not made there, and the kernel for it reads faster (docs/decisions/0031)
        scale = scale_of(x_RC, dtype, power_of_two)
    quantize = _op(quantize_tensorwise_both)
    rows, columns, scale = quantize(x_RC, dtype, scale, power_of_two, outputs)
    return Codes(rows, scale, columns, scale)


def _rowwise(
    x_RC: Tensor,
    dtype: torch.dtype,
    power_of_two: bool,
    outputs: str,
    scale: Tensor | None,
    is_weight: bool,
) -> Codes:
    return Codes(*_op(quantize_rowwise_both)(x_RC, dtype, power_of_two, outputs))


def _blockwise(
    x_RC: Tensor,
    dtype: torch.dtype,
    power_of_two: bool,
    outputs: str,
    scale: Tensor | None,
    is_weight: bool,
) -> Codes:
    height = BLOCK if is_weight else 1
    return Codes(*_op(quantize_block_both)(x_RC, dtype, height, BLOCK, power_of_two, outputs))


def _mx(
    x_RC: Tensor,
    dtype: torch.dtype,
    power_of_two: bool,
    outputs: str,
    scale: Tensor | None,
    is_weight: bool,
) -> Codes:
    return Codes(*_op(quantize_mx)(x_RC, dtype, outputs))


_CASTS: dict[str, Cast] = {
    "tensorwise": _tensorwise,
    "rowwise": _rowwise,
    "blockwise": _blockwise,
    "mx": _mx,
    "int8": _rowwise,
}


def product(
    a_RC: Tensor,
    a_scale: Tensor,
    b_SC: Tensor,
    b_scale: Tensor,
    shape: tuple[int, int],
    plan: Plan,
    *,
    bias: Tensor | None = None,
    dtype: torch.dtype,
    fast_accum: bool = False,
) -> Tensor:
    """(R, C), (S, C) codes -> their product, cut to `shape` (at most (R, S)), contiguous, `dtype`,
    with bias (S,) added before rounding."""
    if bias is not None and bias.shape[0] != b_SC.shape[0]:
        bias = torch.nn.functional.pad(bias, (0, b_SC.shape[0] - bias.shape[0]))
    multiply: Any
    if plan.scaling == "int8":
        multiply = int8_matmul.reference if plan.emulate else _op(int8_matmul)
        y_RS = multiply(a_RC, a_scale, b_SC, b_scale, bias, dtype)
    else:
        # Inductor has no e8m0 on CPUs: it is not shown the reference of MX
        in_the_open = plan.emulate and not (plan.scaling == "mx" and is_compiling())
        multiply = float8_matmul.reference if in_the_open else _op(float8_matmul)
        y_RS = multiply(a_RC, a_scale, b_SC, b_scale, bias, dtype, fast_accum)
    if y_RS.shape[1] != shape[1]:
        return y_RS[: shape[0], : shape[1]].contiguous()
    return y_RS if y_RS.shape[0] == shape[0] else y_RS[: shape[0]]
