"""int8 weight-only linear in the compiled extension."""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _C
from ao_kernels.cpu.weight import dense, refusal
from ao_kernels.ops.int8_linear import int8_linear


def _supports(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> str | None:
    return refusal(x, bias)


@int8_linear.kernel("cpu", device="cpu", supports=_supports, direct=_C.int8_linear)
def _run(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    y = _C.int8_linear(
        torch.get_num_threads(),
        dense(x),
        dense(codes),
        dense(scale),
        group_size,
        dense(bias),
    )
    assert y is not NotImplemented
    return y
