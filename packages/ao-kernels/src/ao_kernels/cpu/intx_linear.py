"""intx weight-only linear in the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _C
from ao_kernels.cpu.weight import dense, refusal
from ao_kernels.ops.intx_linear import intx_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return refusal(x, bias)


@intx_linear.kernel("cpu", device="cpu", supports=_supports, direct=_C.intx_linear)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    y = _C.intx_linear(
        torch.get_num_threads(),
        dense(x),
        dense(codes),
        dense(scale),
        dense(zero),
        bits,
        group_size,
        dense(bias),
    )
    assert y is not NotImplemented
    return y
