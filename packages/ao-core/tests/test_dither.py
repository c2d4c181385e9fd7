"""The dither of the second moment of 4 bits: its words enumerated, and what docs/numerics.md says
of its mean."""

from __future__ import annotations

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

OPTIONS = {"bits": 4, "signed": False}
VALUES = code_values(4, signed=False).double()
TOP = float(VALUES[-1])
# Cells of a segment are equally wide; between two segments the middles are 1.5 widths apart.
BOUNDARIES = [3, 7, 11]


def dithered(x: Tensor, start: int, block_size: int | None = None) -> tuple[Tensor, Tensor]:
    """What comes back, float64, and the scales."""
    n = block_size or len(x)
    codes, scale = quantize_moment(x, dither=start, block_size=n, **OPTIONS)
    back = dequantize_moment(codes, scale, block_size=n, **OPTIONS)
    return back.double().flatten()[: x.numel()], scale


def grid() -> Tensor:
    """Shares of a block, whose scale is about 1; middles and ends of cells among them."""
    even, small = torch.linspace(0, TOP, 3001), torch.logspace(-6, 0, 1000)
    x = torch.cat((even, small, VALUES.float(), torch.tensor([TOP])))
    return torch.cat((x, x.new_zeros(-len(x) % 8)))


def expected_share(x: Tensor) -> tuple[Tensor, Tensor]:
    """The code below each value, and the share of dithers that take the one above: the distance of
    the bits of f, of 2**21 a cell."""
    f = (x + 2.1875).float().view(torch.int32).double()
    cells = (f - float(0x40000000)) / 2**21 - 0.5
    below = cells.floor().clamp(0, 14)
    return below.long(), (cells - below).clamp(0, 1)


def test_the_mean_over_all_dithers() -> None:
    """256 starts, one in each 256th of the words: the mean is that over all to a 256th of a gap."""
    x = grid()
    runs = [dithered(x, k << 24) for k in range(256)]
    scale = float(runs[0][1])
    assert 1 <= scale <= 1 + 2.0**-20
    found = torch.stack([back for back, _ in runs]) / scale
    below, share = expected_share(x.double() / scale)
    low, high = VALUES[below], VALUES[below + 1]
    assert (((found - low).abs() < 1e-5) | ((found - high).abs() < 1e-5)).all()
    mean, gap = found.mean(0), high - low
    assert ((mean - low - share * gap).abs() <= gap * 1.001 / 256).all()

    shares = x.double() / scale
    bias = low + share * gap - shares
    between = torch.isin(below, torch.tensor(BOUNDARIES)) & (share > 0) & (share < 1)
    inside = ~between & (shares >= VALUES[0])
    assert (bias[inside].abs() <= 1e-5 * shares[inside]).all()  # none but that of float32
    width = gap[between] / 1.5  # of the cell below
    assert (bias[between] >= -1e-5 * width).all() and (bias[between] <= 0.2501 * width).all()
    assert bias[between].max() > 0.24 * width.min()
    assert (found[:, shares < VALUES[0]] == VALUES[0]).all()


def test_the_mean_over_steps() -> None:
    """256 steps in a row of every element, anywhere: shares are within 1.5 % of those of all."""
    x = grid()
    for first, offset in ((1, 0), (100_000, 12_345_678_901)):
        starts = dither_starts(range(first, first + 256), [offset] * 256)
        runs = [dithered(x, start) for start in starts]
        scale = float(runs[0][1])
        mean = torch.stack([back for back, _ in runs]).mean(0) / scale
        below, share = expected_share(x.double() / scale)
        low, gap = VALUES[below], VALUES[below + 1] - VALUES[below]
        assert ((mean - low - share * gap).abs() <= 0.015 * gap).all()


@pytest.mark.parametrize("word", [0x7FFFFFFF, 0x80000000, 0, 0xFFFFFFFF])
def test_the_largest_of_a_block_keeps_its_cell(word: int) -> None:
    """20000 blocks with peaks of any bits, the smallest and nearly the largest among them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F800000, (20_000,), generator=generator, dtype=torch.int32)
    bits[:5] = torch.tensor([0, 1, 0x00800000, 0x7F7FFF00, 0x41DE8000])
    x = torch.zeros(len(bits), 8)
    x[:, 0] = bits.view(torch.float32)
    for i in range(0, len(x), 997):  # alone, so that its first element has the word
        back, scale = dithered(x[i], word)
        peak = float(x[i, 0])
        assert (back[1:] == VALUES[0] * float(scale)).all()
        if peak > TOP * 2.0**-126:
            assert 0.85 * peak <= back[0] <= 1.000001 * peak, peak  # 1 - 4 / TOP: one cell below
            assert back[0] >= 0.999999 * peak or word == 0x80000000, peak
        else:
            assert back[0] <= VALUES[1] * float(scale) + peak
    # All at once: whatever their words are, the first elements of the blocks stay above the last
    # cell but one; a code beyond the last one would begin anew, at the smallest.
    for start in dither_starts(range(1, 50), [word] * 49):
        back, _ = dithered(x, start, block_size=8)
        peak, back = x[:, 0].double(), back.view(-1, 8)[:, 0]
        normal = peak > TOP * 2.0**-126
        assert (back[normal] >= 0.85 * peak[normal]).all()
        assert (back[normal] <= 1.000001 * peak[normal]).all()


def test_zeros_nan_and_inf() -> None:
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    device = torch.device("cpu")
    codes, scale = zero_moment(16, block_size=16, device=device, **OPTIONS)
    for start in range(0, 1 << 32, 0x01F0F0F1):
        found = quantize_moment(x, dither=start, block_size=16, **OPTIONS)
        assert torch.equal(found[0], codes.expand(3, 8))
        assert found[1][0] == scale and found[1][1:].isnan().all()


def test_starts() -> None:
    """Of each step and offset, mod 2**32; a part begins where the whole has its first element."""
    assert dither_starts([1.0, 2.0], [0, 0]) == [0x9E3779B9, 0x3C6EF372]
    assert dither_starts([2**24], [2**40 + 3]) == [
        ((2**40 + 3) * 0xC13FA9A9 + 2**24 * 0x9E3779B9) % 2**32
    ]
    x = torch.rand(512, generator=torch.Generator().manual_seed(0))
    (whole,) = dither_starts([7], [1000])
    codes, scale = quantize_moment(x, dither=whole, block_size=128, **OPTIONS)
    (part,) = dither_starts([7], [1000 + 256])
    found = quantize_moment(x[256:], dither=part, block_size=128, **OPTIONS)
    assert torch.equal(found[0], codes[2:]) and torch.equal(found[1], scale[2:])


@pytest.mark.parametrize(("bits", "signed"), [(8, False), ("fp8", False), (4, True)])
def test_other_moments_have_none(bits: int | str, signed: bool) -> None:
    with pytest.raises(ValueError, match="unsigned moments of 4 bits have a dither"):
        quantize_moment(torch.ones(8), bits=bits, signed=signed, block_size=8, dither=1)
