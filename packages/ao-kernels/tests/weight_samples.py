"""Weights of every kind that the CUDA kernels dequantize, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ao_core.packing import pack
from ao_kernels.ops import layout


class Weight(NamedTuple):
    """Arguments of ``_cuda.dequantize`` after the activation, and the weight in float32."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group_size: int
    block_n: int
    expected: Tensor

    def to(self, device: str) -> Weight:
        return Weight(*(a.to(device) if isinstance(a, Tensor) else a for a in self))


def weights(N: int, K: int) -> Iterator[tuple[str, Weight]]:
    """K is a multiple of 8 or one group long."""
    for bits in range(1, 9):
        for dtype in (torch.bfloat16, torch.float32):
            for group, zeros in ((8 * bits, True), (128, False), (K, bits % 2 == 0)):
                yield (
                    f"{bits} bits g{group} {dtype} {zeros}",
                    _intx(N, K, bits, group, dtype, zeros),
                )
    yield "4 bits, shared scales", _intx(N, K, 4, 32, torch.bfloat16, True, rows=1)
    for dtype in (torch.bfloat16, torch.float32):
        for group, rows in ((K, N), (64, N), (32, 1)):
            yield f"int8 g{group} of {rows} {dtype}", _int8(N, K, group, dtype, rows)
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        for block in ((1, K), (N, K), (128, 128), (96, 64), (5, 40)):
            yield f"{kind} {block}", _float8(N, K, *block, kind)


def _groups(K: int, group_size: int) -> int:
    return -(-K // group_size)


def _intx(
    N: int, K: int, bits: int, group: int, dtype: torch.dtype, zeros: bool, rows: int = 0
) -> Weight:
    group = group if group < K else K
    q = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    shape = (rows or N, _groups(K, group))
    scale = (torch.randn(shape) / 8).to(dtype)
    zero = (torch.rand(shape) * 2**bits).to(dtype) if zeros else None
    codes = pack(q, bits)
    expected = layout.dequantize_intx(
        codes, scale, zero, bits=bits, group_size=group, length=K, dtype=torch.float32
    )
    return Weight(codes, scale, zero, bits, group, 1, expected)


def _int8(N: int, K: int, group: int, dtype: torch.dtype, rows: int) -> Weight:
    group = group if group < K else K
    codes = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    scale = (torch.randn(rows, _groups(K, group)) / 64).to(dtype)
    expected = layout.dequantize_int8(codes, scale, group_size=group, dtype=torch.float32)
    return Weight(codes, scale, None, 0, group, 1, expected)


def _float8(N: int, K: int, block_n: int, block_k: int, kind: torch.dtype) -> Weight:
    codes = (torch.randn(N, K) * 20).to(kind)
    scale = torch.rand(-(-N // block_n), -(-K // block_k)) / 16 + 0.01
    expected = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float32)
    return Weight(codes, scale, None, 0, block_k, block_n, expected)
