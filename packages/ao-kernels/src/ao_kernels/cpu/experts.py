"""Grouped linears on a CPU: the compiled kernel of the linear, expert by expert."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ao_kernels.cpu.weight import refusal
from ao_kernels.ops import experts
from ao_kernels.registry import Op


def register(grouped: Op, linear: Op) -> None:
    """Adds the kernel of a grouped op whose linear has one."""

    def supports(x: Tensor, *args: Any) -> str | None:
        return refusal(x, args[-1])

    @grouped.kernel("cpu", device="cpu", supports=supports)
    def _(x: Tensor, *args: Any) -> Tensor:
        *weight, offsets, bias = args
        return experts.each(linear, x, tuple(weight), offsets, bias)
