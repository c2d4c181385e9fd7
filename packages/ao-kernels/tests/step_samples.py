"""Arguments for the ops that take a step of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import dither_starts, quantize_moment
from ao_core.rounding import random_key
from ao_kernels.ops.adam_step import adam_scalars
from ao_kernels.ops.lion_step import lion_scalars
from ao_kernels.ops.moments import bits_of

# Whole blocks, ragged ends, one element, none, and more than a program takes.
SHAPES = ((7, 300), (4096,), (1,), (0, 3), (3, 5, 64), (2 * 8 * 256 + 3,))


@dataclass(frozen=True)
class Options:
    """What a call of the ops is made of."""

    state_bits: str = "8"
    block_size: int = 256
    dtype: torch.dtype = torch.float32
    grad_dtype: torch.dtype = torch.float32
    amsgrad: bool = False
    decoupled: bool = True
    maximize: bool = False
    stochastic: bool = False
    dithered: bool = False
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    seed: int = 0


def moment(x: Tensor, options: Options, signed: bool) -> tuple[Tensor, Tensor | None]:
    """Values and scale of a stored moment."""
    if options.state_bits == "32":
        return x.double() if options.dtype == torch.float64 else x.float(), None
    return quantize_moment(
        x, bits=bits_of(options.state_bits), signed=signed, block_size=options.block_size
    )


def drawn(shape: Sequence[int], spread: float, generator: torch.Generator) -> Tensor:
    """Values of many magnitudes."""
    x = torch.randn(*shape, generator=generator)
    return x * torch.exp(spread * torch.randn(*shape, generator=generator))


def sampled(options: Options, moments: Sequence[bool]) -> tuple[list[list[Tensor]], ...]:
    """Parameters, gradients; values, scales of moments, of which True ones are signed."""
    generator = torch.Generator().manual_seed(options.seed)
    params = [drawn(s, 0.5, generator).to(options.dtype) for s in options.shapes]
    grads = [(0.1 * drawn(s, 1.0, generator)).to(options.grad_dtype) for s in options.shapes]
    values, scales = [], []
    for signed in moments:
        spread = [0.1 * drawn(s, 1.0, generator) for s in options.shapes]
        pairs = [moment(x if signed else x * x, options, signed) for x in spread]
        values.append([v for v, _ in pairs])
        scales.append([s for _, s in pairs if s is not None])
    return [params, grads], values, scales


def randomness(options: Options) -> tuple[list[int], list[int]]:
    """Keys and offsets."""
    if not options.stochastic:
        return [], []
    count = range(len(options.shapes))
    keys = [random_key(seed=1, stream=i, step=3) for i in count]
    return keys, [3 * i + (1 << 32) * (i == 1) for i in count]


def adam_arguments(options: Options) -> tuple[Any, ...]:
    """Arguments of `adam_step` in the midst of a training."""
    pair, values, scales = sampled(options, (True, False, False)[: 2 + options.amsgrad])
    none: list[list[Tensor]] = [[]] * (not options.amsgrad)
    steps = [3.0 + i * options.amsgrad for i in range(len(options.shapes))]
    offsets = [128 * i + (1 << 33) * (i == 1) for i in range(len(options.shapes))]
    scalars = adam_scalars(
        steps,
        lr=1e-2,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.1,
        decoupled=options.decoupled,
    )
    return (
        *pair,
        *values,
        *none,
        *scales,
        *none,
        scalars,
        options.state_bits,
        options.block_size,
        options.decoupled,
        options.maximize,
        dither_starts(steps, offsets) if options.dithered else [],
        *randomness(options),
    )


def lion_arguments(options: Options) -> tuple[Any, ...]:
    """Arguments of `lion_step` in the midst of a training."""
    pair, values, scales = sampled(options, (True,))
    scalars = lion_scalars(len(options.shapes), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    others = (scalars, options.state_bits, options.block_size, options.maximize)
    return (*pair, *values, *scales, *others, *randomness(options))


def copied(args: Sequence[Any], device: str = "cpu") -> tuple[Any, ...]:
    """The arguments with lists of tensors of their own, on a device; scalars stay on the CPU."""

    def each(x: Tensor) -> Tensor:
        there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        return there.copy_(x)

    return tuple(
        [each(t) if isinstance(t, Tensor) else t for t in a] if isinstance(a, list) else a
        for a in args
    )


def bytes_of(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().view(torch.uint8)


def assert_same_state(args: Sequence[Any], expected: Sequence[Any], first: int = 2) -> None:
    """The moments, codes and scales, have the same bits; NaNs may differ."""
    lists = [i for i, a in enumerate(args) if isinstance(a, list)]
    tensors = [i for i in lists if not (args[i] and isinstance(args[i][0], int))]
    for place in tensors[first:]:
        for i, (a, b) in enumerate(zip(args[place], expected[place], strict=True)):
            a = a.cpu()
            assert a.dtype == b.dtype and a.shape == b.shape
            word = torch.int32 if a.dtype == torch.float32 else torch.uint8
            differ = a.view(word) != b.view(word)
            if word == torch.int32:
                differ &= ~(a.isnan() & b.isnan())
            assert not differ.any(), f"argument {place}, parameter {i}: {int(differ.sum())} differ"


def assert_close_parameters(
    args: Sequence[Any], expected: Sequence[Any], before: Sequence[Any], ulps: float
) -> None:
    """Parameters within ``ulps`` units in the last place of float32 of the update, and the
    rounding of the parameter."""
    for i, (a, b, p) in enumerate(zip(args[0], expected[0], before[0], strict=True)):
        a = a.cpu()
        assert a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan())
        update = (b.double() - p.double()).abs()
        eps = torch.finfo(b.dtype).eps
        room = ulps * 2.0**-23 * update + (eps if ulps else 0) * b.double().abs()
        wrong = (a.double() - b.double()).abs() > room
        wrong &= ~((a == b) | a.isnan())
        assert not wrong.any(), f"parameter {i}: {int(wrong.sum())} of {a.numel()} differ"
