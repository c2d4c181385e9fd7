"""Stochastic rounding: exact where bfloat16 is, unbiased elsewhere, the same on repeat."""

from __future__ import annotations

import pytest
import torch

from ao_core.rounding import random_bits, random_key, random_keys, round_to_bfloat16


def bits_of(n: int, *, seed: int = 0, stream: int = 0, step: int = 1) -> torch.Tensor:
    return random_bits(torch.arange(n), seed=seed, stream=stream, step=step)


def test_the_hash_equals_a_plain_one() -> None:
    """Python's integers, where nothing overflows, against int64 tensors."""
    mask = 2**32 - 1

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D & mask
        x = (x ^ (x >> 15)) * 0x846CA68B & mask
        return x ^ (x >> 16)

    seed, stream, step = 2**40 + 7, 3, 12
    key = 0
    for number in (seed, stream, step):
        key = mix((key + (number & mask)) & mask)
        key = mix((key + (number >> 32)) & mask)
        key = (key + 0x9E3779B9) & mask
    index = torch.tensor([0, 1, 77, 2**31, 2**32 - 1, 2**32, 2**40 + 5])
    expected = [
        mix((mix((i // 2 + key) & mask) + (i >> 33) + mix(key)) & mask) >> 16 * (i % 2) & 0xFFFF
        for i in index.tolist()
    ]
    assert random_bits(index, seed=seed, stream=stream, step=step).tolist() == expected


def test_keys_of_many_are_those_of_each() -> None:
    seed, streams, steps = 2**62 + 3, [0, 1, 7, 2**40], [1, 2**20, 3, 2**33]
    expected = [
        random_key(seed=seed, stream=a, step=b) for a, b in zip(streams, steps, strict=True)
    ]
    assert random_keys(seed=seed, streams=streams, steps=steps) == expected
    assert len(set(expected)) == 4 and random_keys(seed=0, streams=[], steps=[]) == []


def test_bits_are_uniform_and_repeat() -> None:
    n = 1 << 18
    bits = bits_of(n)
    assert torch.equal(bits, bits_of(n))
    assert bits.min() >= 0 and bits.max() <= 65535
    # of each bit, the mean is 1/2 within five standard deviations; so is the overlap of two draws
    others = [bits_of(n, seed=1), bits_of(n, stream=1), bits_of(n, step=2), bits.roll(1)]
    for other in [torch.full_like(bits, 0), *others]:
        for bit in range(16):
            share = (((bits ^ other) >> bit) & 1).double().mean()
            assert abs(share - 0.5) < 5 * 0.5 / n**0.5
    buckets = torch.bincount(bits >> 8, minlength=256).double()
    chi2 = ((buckets - n / 256) ** 2 / (n / 256)).sum()
    assert chi2 < 255 + 5 * (2 * 255) ** 0.5


def test_every_fraction_rounds_up_as_often_as_it_should() -> None:
    """All 65536 draws for some fractions: exactly that many go to the farther neighbour."""
    draws = torch.arange(65536, dtype=torch.int32)
    for sign in (1.0, -1.0):
        for fraction in (0, 1, 255, 32768, 65535):
            base = torch.tensor(sign * 1.5).view(torch.int32) + fraction
            x = base.view(torch.float32).expand(65536)
            up = round_to_bfloat16(x.contiguous(), draws).float().abs() > 1.5
            assert int(up.sum()) == fraction


def test_means_are_kept() -> None:
    """65536 copies of a number a little above a bfloat16: 5 standard deviations of the mean."""
    n, spacing = 1 << 16, 2.0**-7
    for share in (0.01, 0.3, 0.75):
        x = torch.full((n,), 1 + share * spacing)
        mean = round_to_bfloat16(x, bits_of(n, seed=5)).double().mean()
        assert abs(mean - x[0].double()) < 5 * spacing * (share * (1 - share) / n) ** 0.5
        assert x.bfloat16().double().mean() in (1, 1 + spacing)  # to nearest, all go one way


def test_exact_values_and_what_is_not_finite() -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.bfloat16)
    for draw in (0, 1, 65535):
        bits = torch.full(every.shape, draw, dtype=torch.int32)
        rounded = round_to_bfloat16(every.float(), bits)
        finite = every.isfinite()
        assert torch.equal(rounded[finite].view(torch.int16), every[finite].view(torch.int16))
        assert torch.equal(rounded.isnan(), every.isnan())
        assert torch.equal(rounded[every.isinf()], every[every.isinf()])
    with pytest.raises(TypeError, match=r"takes float32, got torch\.float64"):
        round_to_bfloat16(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int32))
