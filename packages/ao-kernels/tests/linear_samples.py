"""Sample calls of the weight-only linears, and the instruction sets to run them on."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ao_core.packing import pack, unpack
from ao_kernels import cpu
from ao_kernels.ops import layout

# (M, N, K, group_size): odd sizes, one row, one feature, ragged groups, K below and not a multiple
# of 8, M on both sides of the change from dot products to tiles, N not a multiple of any tile.
_SHAPES = [
    (3, 20, 128, 32),
    (1, 64, 256, 128),
    (2, 17, 100, 40),
    (4, 33, 520, 128),
    (5, 1, 136, 8),
    (7, 48, 96, 96),
    (1, 5, 3, 8),
    (19, 35, 257, 64),
    (33, 70, 1000, 200),
    (70, 9, 384, 128),
]


# What CUDA kernels take: few tokens, on both sides of 8; features that fill no step of 128; each of
# their two ways through a group; a row of tokens that several blocks share.
CUDA_SHAPES = [
    (3, 20, 128, 32),
    (1, 64, 256, 128),
    (8, 17, 352, 32),
    (9, 33, 416, 416),
    (16, 50, 1056, 64),
    (2, 40, 384, 128),
    (11, 48, 1152, 96),
    (16, 130, 2048, 256),
    (5, 16, 32, 32),
    (16, 5, 4096, 4096),
]


def sample_intx(
    bits: int, dtype: torch.dtype, shapes: list[tuple[int, int, int, int]] = _SHAPES
) -> Iterator[tuple[Any, ...]]:
    """(name, x, codes, scale, zero, group_size, bias)"""
    generator = torch.Generator().manual_seed(bits)
    for index, (M, N, K, group_size) in enumerate(shapes):
        codes = torch.randint(0, 2**bits, (N, K), generator=generator, dtype=torch.uint8)
        scale, zero, bias = _parameters(index, N, K, group_size, 2 ** (bits - 1), generator)
        x = torch.randn(M, K, generator=generator).to(dtype)
        name = f"{bits} bits, {M}x{N}x{K} g{group_size} scale {tuple(scale.shape)} {scale.dtype}"
        yield name, x, pack(codes, bits), scale, zero, group_size, bias


def sample_int8(
    dtype: torch.dtype, shapes: list[tuple[int, int, int, int]] = _SHAPES
) -> Iterator[tuple[Any, ...]]:
    """(name, x, codes, scale, group_size, bias)"""
    generator = torch.Generator().manual_seed(8)
    for index, (M, N, K, group_size) in enumerate(shapes):
        codes = torch.randint(-127, 128, (N, K), generator=generator, dtype=torch.int8)
        scale, _, bias = _parameters(index, N, K, group_size, 0.0, generator)
        x = torch.randn(M, K, generator=generator).to(dtype)
        name = f"{M}x{N}x{K} g{group_size} scale {tuple(scale.shape)} {scale.dtype}"
        yield name, x, codes, scale, group_size, bias


def _parameters(
    index: int, N: int, K: int, group_size: int, middle: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    n_groups, n_rows = -(-K // group_size), 1 if index % 5 == 4 else N
    dtype = torch.float32 if index % 3 == 2 else torch.bfloat16
    scale = (torch.rand(n_rows, n_groups, generator=generator) / K**0.5).to(dtype)
    zero = (middle + torch.randn(n_rows, n_groups, generator=generator)).to(dtype)
    bias = torch.randn(N, generator=generator).to([torch.float32, torch.bfloat16][index % 2])
    return scale, zero if index % 2 else None, bias if index % 3 == 0 else None


def magnitude_intx(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    bias: Tensor | None,
) -> Tensor:
    """|x| @ ((code + |zero|) |scale|).T + |bias| in float64."""
    K = x.shape[-1]
    middle = torch.full_like(scale, 2.0 ** (bits - 1)) if zero is None else zero
    per_code = unpack(codes, bits, K).double() + layout.expand_groups(
        middle.double().abs(), group_size, K
    )
    w_NK = per_code * layout.expand_groups(scale.double().abs(), group_size, K)
    y = x.double().abs() @ w_NK.T
    return y if bias is None else y + bias.double().abs()


def magnitude_int8(
    x: Tensor, codes: Tensor, scale: Tensor, group_size: int, bias: Tensor | None
) -> Tensor:
    """|x| @ (|code| |scale|).T + |bias| in float64."""
    per_input = layout.expand_groups(scale.double().abs(), group_size, x.shape[-1])
    y = x.double().abs() @ (codes.double().abs() * per_input).T
    return y if bias is None else y + bias.double().abs()


def isa_variants() -> list[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
    """One variant an instruction set of this machine; one without a name where there is no
    extension."""
    names = cpu.available_isas()
    if not names:
        return [("", contextlib.nullcontext)]
    return [(name, lambda name=name: _using(name)) for name in names]


@contextlib.contextmanager
def _using(name: str) -> Iterator[None]:
    before = cpu.isa()
    cpu.set_isa(name)
    try:
        yield
    finally:
        cpu.set_isa(before)
