"""Products of int8 operands in Triton, by the kernel of ``int8_dynamic_linear``.

M rows of a, N rows of b, K features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int8_matmul import int8_matmul
from ao_kernels.triton import int8_dynamic_linear, launch, tiles

_PLANS: launch.Plans[int8_dynamic_linear.Product] = launch.Plans()


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> str | None:
    if bias is not None and bias.dtype == torch.float64:
        return "bias has dtype torch.float64"
    return None


def _key(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> tuple[Any, ...]:
    facts = launch.facts
    operands = facts(a), facts(a_scale), facts(b), facts(b_scale)
    return operands, facts(bias), out_dtype


def _direct(
    _: int,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    plan = _PLANS.get(_key(a, a_scale, b, b_scale, bias, out_dtype))
    return NotImplemented if plan is None else plan(a, a_scale, b, b_scale, bias)


@int8_matmul.kernel("triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct))
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return int8_matmul.reference(a, a_scale, b, b_scale, bias, out_dtype)
    M = a.shape[0]
    given = (a, a_scale, b, b_scale, bias)
    b, b_scale, bias = b.contiguous(), b_scale.reshape(-1, 1).contiguous(), dense(bias)
    key = _key(*given, out_dtype)
    plan = int8_dynamic_linear.product(
        (M, b.shape[0]), M, b, b_scale, bias, out_dtype or torch.bfloat16
    )
    # The kernel reads whole steps of K of each row of a.
    a = pad(a, (0, plan.padded - a.shape[1])) if plan.padded != a.shape[1] else a.contiguous()
    a_scale = a_scale.reshape(-1).expand(M).contiguous()
    if launch.same_places(given, (a, a_scale, b, b_scale, bias)):
        _PLANS.keep(key, plan)
    return plan(a, a_scale, b, b_scale, bias)
