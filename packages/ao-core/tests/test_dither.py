"""The dither of moments of 4 bits: its words enumerated, and what docs/numerics.md says of its
mean."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ao_core.moments import (
    code_values,
    dequantize_moment,
    dither_starts,
    quantize_moment,
    zero_moment,
)
from ao_core.rounding import random_key


@dataclass(frozen=True)
class Map:
    """Of one moment: the summand, and the bits of a cell."""

    signed: bool
    bias: float
    cell_bits: int

    @property
    def options(self) -> dict[str, int | bool]:
        return {"bits": 4, "signed": self.signed}

    @property
    def values(self) -> Tensor:
        """Of codes without their sign, float64, ascending."""
        return code_values(4, signed=self.signed)[: 8 if self.signed else 16].double()

    @property
    def top(self) -> float:
        return float(self.values[-1])

    def dithered(
        self, x: Tensor, start: int, block_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """What comes back, float64, and the scales."""
        n = block_size or len(x)
        codes, scale = quantize_moment(x, dither=start, block_size=n, **self.options)
        back = dequantize_moment(codes, scale, block_size=n, **self.options)
        return back.double().flatten()[: x.numel()], scale

    def grid(self) -> Tensor:
        """Shares of a block, whose scale is about 1; values among them, and every other one of a
        signed moment negative."""
        even, small = torch.linspace(0, self.top, 3001), torch.logspace(-6, 0, 1000)
        x = torch.cat((even, small, self.values.float(), torch.tensor([self.top])))
        x = torch.cat((x, x.new_zeros(-len(x) % 8)))
        return x * (-1) ** torch.arange(len(x)) if self.signed else x

    def between(self, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values below and above magnitudes, and how far they are on the way to the upper."""
        above = torch.searchsorted(self.values, size, right=True).clamp(1, len(self.values) - 1)
        low, high = self.values[above - 1], self.values[above]
        return low, high, ((size - low) / (high - low)).clamp(0, 1)


MAPS = (Map(False, 1.9375, 2), Map(True, 2.0, 1))
maps = pytest.mark.parametrize("map_", MAPS, ids=["exp_avg_sq", "exp_avg"])


@maps
def test_the_mean_over_all_dithers(map_: Map) -> None:
    """256 starts, one in each 256th of the words: the mean is the value, to a 256th of the distance
    between its neighbours. A factor of the words that is odd leaves them evenly spread."""
    x = map_.grid()
    runs = [map_.dithered(x, k << 24) for k in range(256)]
    scale = float(runs[0][1])
    assert 1 <= scale <= 1 + 2.0**-20
    found = torch.stack([back for back, _ in runs]) / scale
    assert (found * x >= 0).all()  # signs stay
    found = found.abs()
    sizes = x.double().abs() / scale
    low, high, share = map_.between(sizes)
    far = torch.minimum((found - low).abs(), (found - high).abs())
    assert (far < 1e-5).all()
    assert ((found.mean(0) - low - share * (high - low)).abs() <= (high - low) * 1.001 / 256).all()
    small = sizes < map_.values[0]
    assert (found[:, small] == map_.values[0]).all()
    assert ((found.mean(0) - sizes).abs() <= (high - low) * 1.01 / 256)[~small].all()


@maps
def test_the_mean_over_elements(map_: Map) -> None:
    """256 elements in a row, in any step, anywhere: within 1.5 % of the share of all words."""
    for step, offset in ((1, 0), (100_000, 12_345_678_901)):
        (start,) = dither_starts([step], [offset])
        for size in map_.grid().abs()[:3000:17].tolist():
            x = torch.full((264,), size)
            x[:8] = map_.top
            back, scale = map_.dithered(x, start)
            low, high, share = map_.between(x[8:9].double() / scale)
            mean = back[8:].mean() / scale
            assert (mean - low - share * (high - low)).abs() <= 0.015 * (high - low), size


def ups(map_: Map, part: float) -> Tensor:
    """In 4096 steps in a row of an element that lies so far between the first two codes, whether it
    goes to the upper one."""
    x = torch.zeros(8)
    middle = map_.values[0] * (1 - part) + map_.values[1] * part
    x[0], x[1] = map_.top, middle
    starts = dither_starts(range(1, 4097), [0] * 4096)
    runs = [map_.dithered(x, start) for start in starts]
    return torch.stack([back[1] / scale > middle for back, scale in runs]).double()


def test_steps_do_not_know_of_each_other() -> None:
    """What a moment was rounded to moves what is rounded next: a sequence that is even over steps
    (it was the golden ratio's) would add up small first moments to 1.7 times what they are."""
    for part in (0.1, 0.5):
        found = [ups(map_, part) for map_ in MAPS]
        for up in found:
            assert abs(up.mean() - part) <= 0.02
            rest = up - up.mean()
            for lag in (1, 2, 3, 5, 8, 13):
                correlation = (rest[lag:] * rest[:-lag]).mean() / rest.square().mean()
                assert abs(correlation) < 0.07, lag
        together = ((found[0] - part) * (found[1] - part)).mean() / (part * (1 - part))
        assert abs(together) < 0.2  # of the two moments of an element


@maps
@pytest.mark.parametrize("word", [0x7FFFFFFF, 0x80000000, 0, 0xFFFFFFFF])
def test_the_largest_of_a_block_keeps_its_cell(map_: Map, word: int) -> None:
    """20000 blocks with peaks of any bits, the smallest and nearly the largest among them."""
    if map_.signed:  # the start whose word of exp_avg that is
        word = word * pow(0xA30ED527, -1, 1 << 32) & 0xFFFFFFFF
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F800000, (20_000,), generator=generator, dtype=torch.int32)
    bits[:5] = torch.tensor([0, 1, 0x00800000, 0x7F7FFF00, 0x41DE8000])
    x = torch.zeros(len(bits), 8)
    x[:, 0] = bits.view(torch.float32)
    values, top = map_.values, map_.top
    lower = float(values[-2]) / top * 0.99999  # one cell below, for the smallest words
    for i in range(0, len(x), 997):  # alone, so that its first element has the word
        back, scale = map_.dithered(x[i], word)
        peak = float(x[i, 0])
        assert (back[1:] == values[0] * float(scale)).all()
        if peak > top * 2.0**-126:
            assert lower * peak <= back[0] <= 1.000001 * peak, peak
            assert back[0] >= 0.999999 * peak or word == 0, peak
        else:
            assert back[0] <= values[1] * float(scale) + peak
    # All at once: whatever their words are, the first elements of the blocks stay above the last
    # cell but one; a code beyond the last one would begin anew, at the smallest.
    below = []
    for start in dither_starts(range(1, 50), [word] * 49):
        back, _ = map_.dithered(x, start, block_size=8)
        peak, back = x[:, 0].double(), back.view(-1, 8)[:, 0]
        normal = peak > top * 2.0**-126
        assert (back[normal] >= lower * peak[normal]).all()
        assert (back[normal] <= 1.000001 * peak[normal]).all()
        below.append((back[normal] < 0.999 * peak[normal]).double().mean())
    assert torch.stack(below).mean() < 1e-4  # the scale's room is 8 of 2**21 words at most


@maps
def test_zeros_nan_and_inf(map_: Map) -> None:
    """Zeros stay zeros, and codes of zero bits, whatever the dither is."""
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    device = torch.device("cpu")
    codes, scale = zero_moment(16, block_size=16, device=device, **map_.options)
    for start in range(0, 1 << 32, 0x01F0F0F1):
        found = quantize_moment(x, dither=start, block_size=16, **map_.options)
        assert torch.equal(found[0], codes.expand(3, 8))
        assert found[1][0] == scale and found[1][1:].isnan().all()


@maps
def test_starts(map_: Map) -> None:
    """Of each step and offset, mod 2**32; a part begins where the whole has its first element."""
    steps = [1.0, 2.0, 2**24]
    words = [random_key(seed=0, stream=0, step=int(step)) for step in steps]
    assert dither_starts(steps, [0, 0, 2**40 + 3]) == [
        *words[:2],
        ((2**40 + 3) * 0xC13FA9A9 + words[2]) % 2**32,
    ]
    x = torch.rand(512, generator=torch.Generator().manual_seed(0))
    (whole,) = dither_starts([7], [1000])
    codes, scale = quantize_moment(x, dither=whole, block_size=128, **map_.options)
    (part,) = dither_starts([7], [1000 + 256])
    found = quantize_moment(x[256:], dither=part, block_size=128, **map_.options)
    assert torch.equal(found[0], codes[2:]) and torch.equal(found[1], scale[2:])


@pytest.mark.parametrize("bits", [8, "fp8"])
def test_other_moments_have_none(bits: int | str) -> None:
    with pytest.raises(ValueError, match="moments of 4 bits have a dither"):
        quantize_moment(torch.ones(8), bits=bits, signed=False, block_size=8, dither=1)
