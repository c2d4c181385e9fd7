"""Sample calls of the float8 linears, and the sums of absolute values that bound their errors."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ao_core.numerics import quantize_float8_tokens
from ao_core.testing.op_contract import OpContract
from ao_kernels.ops import layout

WHOLE = 1 << 30  # a block as large as any tensor

# (M, N, K, block_n, block_k): rows, tensors, blocks and groups; odd sizes, one row, one feature,
# blocks that do not divide, K below and not a multiple of 8.
_SHAPES = [
    (3, 20, 128, 1, 128),
    (1, 64, 256, WHOLE, WHOLE),
    (2, 17, 100, 1, 40),
    (4, 130, 300, 128, 128),
    (5, 1, 136, 1, 136),
    (7, 48, 96, 48, 96),
    (1, 5, 3, 1, 8),
    (19, 35, 257, 128, 128),
    (33, 70, 1000, 32, 200),
    (70, 9, 384, 1, WHOLE),
]


# What CUDA kernels take; see linear_samples. Blocks of rows that end within a tile of 16 or 32.
CUDA_SHAPES = [
    (3, 20, 128, 1, 32),
    (1, 64, 256, 1, WHOLE),
    (8, 17, 352, WHOLE, WHOLE),
    (9, 33, 416, 1, 416),
    (16, 300, 1056, 128, 128),
    (2, 40, 384, 7, 64),
    (11, 48, 1152, 1, 96),
    (16, 130, 2048, 128, 256),
    (5, 16, 32, 3, 32),
    (16, 5, 4096, 128, 4096),
]


class OnReference(OpContract):
    """OpContract of an op that has no CPU kernel: plain torch computes it there."""

    test_calls_after_fork = None  # torch's own threads do not survive a fork


def sample_float8(
    dtype: torch.dtype, shapes: list[tuple[int, int, int, int, int]] = _SHAPES
) -> Iterator[tuple[Any, ...]]:
    """(name, x, codes, scale, block_n, block_k, bias)"""
    generator = torch.Generator().manual_seed(8)
    for index, (M, N, K, block_n, block_k) in enumerate(shapes):
        kind = torch.float8_e5m2 if index % 4 == 3 else torch.float8_e4m3fn
        codes = (torch.randn(N, K, generator=generator) * 64).to(kind)
        shape = (-(-N // block_n), -(-K // block_k))
        scale = (torch.rand(shape, generator=generator) + 0.01) / (64 * K**0.5)
        bias = torch.randn(N, generator=generator).to([torch.float32, torch.bfloat16][index % 2])
        x = torch.randn(M, K, generator=generator).to(dtype)
        name = f"{M}x{N}x{K} {kind} in blocks of {block_n} x {block_k}"
        yield name, x, codes, scale, block_n, block_k, bias if index % 3 == 0 else None


def magnitude_float8(
    x: Tensor, codes: Tensor, scale: Tensor, block_n: int, block_k: int, bias: Tensor | None
) -> Tensor:
    """|x| @ |code * scale|.T + |bias| in float64."""
    w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float64)
    y = x.double().abs() @ w_NK.abs().T
    return y if bias is None else y + bias.double().abs()


def float8_activations(
    x: Tensor, activation: str, block_k: int = WHOLE, scale: Tensor | None = None
) -> Tensor:
    """What the tokens are after quantization, float64: all that is lost is lost here."""
    x_MK = x.reshape(-1, x.shape[-1])
    M, K = max(x_MK.shape[0], 1), x_MK.shape[1]
    block = {"tensor": (M, K), "row": (1, K), "block": (1, min(block_k, K))}[activation]
    codes, scale = quantize_float8_tokens(x_MK, block=block, scale=scale)
    return layout.dequantize_float8(codes, scale, *block, torch.float64).reshape(x.shape)


def float8_call(
    M: int,
    N: int,
    K: int,
    block_n: int,
    block_k: int,
    dtype: torch.dtype,
    *,
    kind: torch.dtype = torch.float8_e4m3fn,
    bias: torch.dtype | None = None,
) -> tuple[Any, ...]:
    """(x, codes, scale, block_n, block_k, bias)"""
    codes = (torch.randn(N, K) * 64).to(kind)
    scale = (torch.rand(-(-N // block_n), -(-K // block_k)) + 0.1) / (64 * K**0.5)
    given = None if bias is None else torch.randn(N).to(bias)
    return torch.randn(M, K).to(dtype), codes, scale, block_n, block_k, given


def large_float8(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls of a size that models have: few and many tokens; rows, tensors, blocks; odd sizes."""
    bfloat16 = torch.bfloat16
    for M, N, K, block_n, block_k, bias in [
        (1, 4096, 4096, 1, WHOLE, None),
        (16, 2048, 11008, WHOLE, WHOLE, None),
        (33, 4096, 4096, 128, 128, None),
        (64, 4096, 4096, 1, WHOLE, torch.float32),
        (100, 4096, 4096, 1, WHOLE, bfloat16),
        (300, 1008, 4992, WHOLE, WHOLE, None),
        (257, 1000, 5000, 1, WHOLE, None),
        (17, 4099, 4104, 1, WHOLE, bfloat16),
        (1024, 4096, 4096, 128, 128, None),
        (777, 2000, 4096, 1, WHOLE, bfloat16),
        (1024, 4096, 4096, WHOLE, WHOLE, torch.float32),
    ]:
        call = float8_call(M, N, K, block_n, block_k, dtype, bias=bias)
        yield f"{M}x{N}x{K} in blocks of {block_n} x {block_k} {dtype}", call


def multiplied_as_float8(x: Tensor, codes: Tensor) -> bool:
    """Whether a GPU multiplies quantized tokens with float8 instructions, whose sums keep about 14
    bits for up to 128 products."""
    return x.dtype != torch.float32 and codes.dtype == torch.float8_e4m3fn
