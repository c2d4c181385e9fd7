"""Layers on both sides, what they compute by the equations, and counts of casts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ao_core import mx
from ao_core.numerics import dequantize_float8, quantize_blocks
from ao_float8 import Float8Linear, Float8LinearConfig, float8_checkpoint_contexts, operands
from ao_float8.config import RECIPES
from ao_kernels.registry import Op

EMULATED = {name: dataclasses.replace(c, emulate=True) for name, c in RECIPES.items()}


def emulated(recipe: str = "tensorwise", **changes: object) -> Float8LinearConfig:
    return dataclasses.replace(EMULATED[recipe], **changes)


def layer(
    K: int,
    N: int,
    config: Float8LinearConfig | None = None,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Float8Linear:
    linear = nn.Linear(K, N, bias=bias, dtype=dtype)
    return Float8Linear.from_float(linear, config or emulated())


# Ways to run a block: run(block, x)
CHECKPOINTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "": lambda block, x: block(x),
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "plain": functools.partial(checkpoint, use_reentrant=False),
    "selective": functools.partial(
        checkpoint, use_reentrant=False, context_fn=float8_checkpoint_contexts
    ),
}


def image(x_RC: Tensor, config: Float8LinearConfig, role: str, *, columns: bool = False) -> Tensor:
    """float64 (R, C): what the codes of an operand stand for, by the equations of docs/numerics.md;
    role is "input", "weight" or "grad_output"."""
    if columns:
        return image(x_RC.T, config, role).T
    dtype = getattr(config, f"{role}_dtype")
    R, C = x_RC.shape
    x = x_RC.detach().float()
    if config.scaling == "mx":
        codes, scale = mx.quantize_mx(x, dtype=dtype)
        return mx.dequantize_mx(codes, scale).double()
    height = 128 if role == "weight" else 1
    block = {
        "tensorwise": (R, C),
        "rowwise": (1, C),
        "int8": (1, C),
        "blockwise": (height, 128),
    }[config.scaling]
    p2 = config.round_scales_to_power_of_2
    codes, scale = quantize_blocks(x, block=block, dtype=dtype, power_of_two=p2)
    return dequantize_float8(codes, scale.float(), block=block).double()


def expected(
    x_MK: Tensor, w_NK: Tensor, dy_MN: Tensor, config: Float8LinearConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx, dw in float64, without rounding of the results."""
    y = image(x_MK, config, "input") @ image(w_NK, config, "weight").T
    dx = image(dy_MN, config, "grad_output") @ image(w_NK, config, "weight", columns=True)
    if config.grad_weight_in_high_precision:
        return y, dx, dy_MN.double().T @ x_MK.double()
    dw = image(dy_MN, config, "grad_output", columns=True).T @ image(
        x_MK, config, "input", columns=True
    )
    return y, dx, dw


@contextmanager
def counted() -> Iterator[list[tuple[str, bool]]]:
    """The casts inside: which outputs, and whether of a weight."""
    casts: list[tuple[str, bool]] = []

    def wrap(fn: operands.Cast) -> operands.Cast:
        def run(x, dtype, power_of_two, outputs, scale, is_weight):  # type: ignore[no-untyped-def]
            casts.append((outputs, is_weight))
            return fn(x, dtype, power_of_two, outputs, scale, is_weight)

        return run

    with mock.patch.dict(operands._CASTS, {k: wrap(v) for k, v in operands._CASTS.items()}):
        yield casts


@contextmanager
def computed() -> Iterator[list[torch.Size]]:
    """The shapes of what was cast inside; of casts that were computed, and not taken from what a
    checkpoint saved."""
    shapes: list[torch.Size] = []
    run = Op._run

    def record(self: Op, args: tuple) -> object:
        if self.name.startswith("quantize"):
            shapes.append(args[0].shape)
        return run(self, args)

    with mock.patch.object(Op, "_run", record):
        yield shapes
