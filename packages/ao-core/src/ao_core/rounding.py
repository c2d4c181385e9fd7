"""Stochastic rounding of float32 to bfloat16, from random bits that are counted, not drawn.

    r = one half of word(seed, stream, step, index // 2)     16 bits, uniform
    y = the upper 16 bits of (bits(x) + r)

x lies between two neighbouring bfloat16 values; y is the one farther from zero with a probability
that is x's share of the way there, so the mean of y is x. The word is a hash of the optimizer's
seed, the parameter's place in the optimizer, the step, and the element's index in the whole
parameter: the same on every device, however the parameter is sharded, and after a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["keyed_bits", "random_bits", "random_key", "random_keys", "round_to_bfloat16"]

MASK = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)


def _mix(x: Word) -> Word:
    """A bijection of 32-bit words whose output bits depend on all input bits.

    The second factor is 0x846CA68B - 2**32, so that no product leaves the range of int64.
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * (0x846CA68B - 2**32)) & MASK
    return x ^ (x >> 16)


def random_key(*, seed: int, stream: int, step: int) -> int:
    """What `random_bits` needs of its three numbers below 2**63: a word of 32 bits."""
    key: int = _key(seed, stream, step)
    return key


def random_keys(*, seed: int, streams: Sequence[int], steps: Sequence[int]) -> list[int]:
    """`random_key` of each stream and its step: 300 take 0.1 ms, where one by one they take 1."""
    words = [torch.tensor(numbers, dtype=torch.int64) for numbers in (streams, steps)]
    found: list[int] = _key(seed, *words).tolist()
    return found


def _key(*numbers: Any) -> Any:
    key: Any = 0
    for number in numbers:
        key = _mix((key + (number & MASK)) & MASK)
        key = _mix((key + ((number >> 32) & MASK)) & MASK)
        key = (key + 0x9E3779B9) & MASK
    return key


def random_bits(index: Tensor, *, seed: int, stream: int, step: int) -> Tensor:
    """16 random bits an element, int32 in [0, 65535].

    index: int64 of any shape, not negative; the elements 2 i and 2 i + 1 take the halves of a word,
    the lower one first. `seed`, `stream` and `step` are numbers below 2**63.
    """
    return keyed_bits(index, random_key(seed=seed, stream=stream, step=step))


def keyed_bits(index: Tensor, key: int) -> Tensor:
    """`random_bits` by their key."""
    pair = index >> 1
    word = _mix(((pair & MASK) + key) & MASK)
    word = _mix((word + (pair >> 32) + _mix(key)) & MASK)
    return ((word >> ((index & 1) << 4)) & 0xFFFF).to(torch.int32)


def round_to_bfloat16(x: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16 of the same shape; NaN and inf stay what they are.

    bits: int32 in [0, 65535], one an element. What bfloat16 holds exactly is kept.
    """
    if x.dtype != torch.float32:
        raise TypeError(f"stochastic rounding takes float32, got {x.dtype}")
    rounded = ((x.view(torch.int32) + bits) & -65536).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
