"""What the benchmarks of the float8 linears share: their layers.

N output features, K input features. ``kind`` of scales: "row", "tensor" or "block" (128 x 128).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from measure_cuda import count_layers
from torch import Tensor

WHOLE = 1 << 30  # a block as large as any tensor
BLOCKS = {"row": (1, WHOLE), "tensor": (WHOLE, WHOLE), "block": (128, 128)}
E4M3 = torch.float8_e4m3fn


class Layer(NamedTuple):
    """A weight as codes and scale, and in the dtype of the activations."""

    codes: Tensor
    scale: Tensor
    block: tuple[int, int]
    dense: Tensor


def layers(N: int, K: int, kind: str, dtype: torch.dtype) -> list[Layer]:
    """As many as pass through the L2 cache several times."""
    block_n, block_k = BLOCKS[kind]
    found = []
    for _ in range(count_layers(N * K)):
        codes = (torch.randn(N, K, device="cuda") * 64).to(E4M3)
        shape = (-(-N // block_n), -(-K // block_k))
        scale = (torch.rand(shape, device="cuda") + 0.5) / (64 * K**0.5)
        spread = scale.repeat_interleave(min(block_n, N), 0)[:N]
        spread = spread.repeat_interleave(min(block_k, K), 1)[:, :K]
        found.append(Layer(codes, scale, (block_n, block_k), (codes.float() * spread).to(dtype)))
    return found
