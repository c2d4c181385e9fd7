"""The maps of the state against their equations: every code, every boundary, every bound."""

from __future__ import annotations

import pytest
import torch

from ao_optim.moments import FORMATS, code_values, dequantize_moment, get_format, quantize_moment

MAPS = [(bits, signed) for bits in (8, 4, "fp8") for signed in (True, False)]


def round_trip(x: torch.Tensor, bits: int | str, signed: bool, block_size: int) -> torch.Tensor:
    codes, scale = quantize_moment(x, bits=bits, signed=signed, block_size=block_size)
    back = dequantize_moment(codes, scale, bits=bits, signed=signed, block_size=block_size)
    return back.flatten()[: x.numel()].view(x.shape)


def finite_values(bits: int | str, signed: bool) -> torch.Tensor:
    """Ascending, in shares of the largest."""
    values = code_values(bits, signed=signed)
    values = values[values.isfinite()].unique()
    values = values if signed else values[values >= 0]
    return values / values.max() + 0.0  # the zero with a sign becomes the other


def test_the_dynamic_map_is_the_one_of_the_paper() -> None:
    """The decades of 7 bits, counted by hand: 1 + 2 + ... + 64 values of either sign, 0 and 1."""
    signed = code_values(8, signed=True)
    assert signed.shape == (256,) and (signed[1:] > signed[:-1]).all()
    assert signed[255] == 1 and signed[127] == 0
    for decade in range(7):
        low, high = 10.0 ** (decade - 7), 10.0 ** (decade - 6)
        for sign in (1, -1):
            inside = signed[(sign * signed > low) & (sign * signed < high)]
            assert len(inside) == 2**decade
            expected = torch.linspace(low, high, 2 * 2**decade + 1, dtype=torch.float64)[1::2]
            torch.testing.assert_close((sign * inside).sort().values, expected.float())
    unsigned = code_values(8, signed=False)
    assert unsigned.shape == (256,) and unsigned[0] == 0 and unsigned[255] == 1
    assert [
        int(((unsigned > 10.0 ** (d - 7)) & (unsigned < 10.0 ** (d - 6))).sum()) for d in range(7)
    ] == [2 ** (d + 1) for d in range(7)]


def test_the_maps_of_four_bits() -> None:
    signed = code_values(4, signed=True)
    positive = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    expected = [-v for v in reversed(positive)] + [0.0, *positive, 1.0]
    torch.testing.assert_close(signed, torch.tensor(expected))
    unsigned = code_values(4, signed=False)
    assert torch.equal(unsigned.sqrt(), torch.arange(1, 17) / 16)


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_every_code_comes_back_from_its_value(bits: int | str, signed: bool) -> None:
    """For every power of two as the scale, and one that is none."""
    values = finite_values(bits, signed)
    for scale in (2.0**-100, 2.0**-20, 1.0, 3.7, 2.0**100):
        x = (values * scale).clone()
        n = -(-len(x) // 8) * 8
        assert torch.allclose(round_trip(x, bits, signed, n), x, rtol=3e-7, atol=0)
        codes, _ = quantize_moment(x, bits=bits, signed=signed, block_size=n)
        distinct = codes.view(torch.uint8).unique() if bits != 4 else None
        assert distinct is None or len(distinct) == len(values)


@pytest.mark.parametrize(("bits", "signed"), [m for m in MAPS if m[0] != "fp8"])
def test_values_go_to_the_nearest_code(bits: int, signed: bool) -> None:
    """A little to either side of every midpoint; the smallest positive code takes all below it."""
    values = finite_values(bits, signed).double()
    middle = (values[1:] + values[:-1]) / 2
    below, above = (middle * (1 - 1e-5)).float(), (middle * (1 + 1e-5)).float()
    lower, upper = values[:-1].float(), values[1:].float()
    negative = middle < 0
    below, above = torch.where(negative, above, below), torch.where(negative, below, above)
    if not signed and values[0] == 0:
        lower[0] = upper[0]
    for x, expected in ((below, lower), (above, upper)):
        x = torch.cat((x, torch.ones(1)))  # the scale is 1
        n = -(-len(x) // 8) * 8
        assert torch.equal(round_trip(x, bits, signed, n)[:-1], expected)


BOUNDS = {(8, True): 0.00704, (8, False): 0.00352, (4, True): 0.1125, (4, False): 31 / 512}


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_errors_are_within_the_bounds_of_the_document(bits: int | str, signed: bool) -> None:
    """Shares of a block's largest magnitude on a fine grid, even and logarithmic."""
    even = torch.linspace(-1 if signed else 0, 1, 200_001)
    small = torch.logspace(-12, 0, 100_001)
    x = torch.cat((even, small, -small if signed else small))
    x = torch.cat((x, x.new_ones(-len(x) % 8)))
    error = (round_trip(x, bits, signed, len(x)) - x).abs()
    assert x.abs().max() == 1
    if bits == "fp8":
        smallest = 2.0**-9 / 448
        floor = smallest / 2 if signed else smallest
        assert (error <= (x.abs() * 2.0**-4 + 1e-7 * x.abs()).clamp(min=floor * 1.0001)).all()
    else:
        assert error.max() <= BOUNDS[bits, signed] * 1.0001
        assert error.max() >= BOUNDS[bits, signed] * 0.99  # the bound is no larger than need be
    if bits == 8:  # relative: half a step of a decade, for all but the smallest decades
        inside = x.abs() > 1e-3
        assert (error[inside] <= x[inside].abs() * (0.29 if signed else 0.15)).all()


def test_errors_of_roots_with_four_bits() -> None:
    """What the update divides by: within 0.0364 of the largest root, 1/16 below that share."""
    x = torch.linspace(0, 1, 200_000)
    error = (round_trip(x**2, 4, False, len(x)).sqrt() - x).abs()
    assert error[x > 1 / 16].max() <= 0.0364 and error.max() <= 1 / 16


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_zeros_small_blocks_and_nan(bits: int | str, signed: bool) -> None:
    n = 16
    x = torch.zeros(5, n)
    x[1] = 2.0**-140  # below the smallest scale
    x[2, 3], x[3, 4] = torch.nan, torch.inf
    x[4] = torch.linspace(0, 3.0e38, n)
    codes, scale = quantize_moment(x, bits=bits, signed=signed, block_size=n)
    back = round_trip(x, bits, signed, n)
    assert scale[0] == torch.finfo(torch.float32).tiny or bits == "fp8"
    assert scale[[0, 1, 4]].isfinite().all() and (scale[[0, 1, 4]] > 0).all()
    if bits == 4 and not signed:
        assert (back[0] == 2.0**-134).all()  # no code of this map is zero
    else:
        assert (back[0] == 0).all()
    assert back[2].isnan().all() and back[3].isnan().all()
    assert back[4].isfinite().all() and (back[4, -1] - 3.0e38).abs() <= 3.0e38 * 1e-6
    assert codes.shape == (5, get_format(bits).stored_width(n))


@pytest.mark.parametrize("bits", [8, 4, "fp8"])
def test_what_is_above_zero_stays_so_where_roots_divide(bits: int | str) -> None:
    x = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 1.0])
    back = round_trip(x, bits, False, 8)
    assert (back[1:] > 0).all()
    assert (back[1:] >= x[1:] * 0.75).all()


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_blocks_do_not_see_each_other(bits: int | str, signed: bool) -> None:
    """37 elements in blocks of 16: the last has 5, and is what it would be alone."""
    x = torch.rand(37, generator=torch.Generator().manual_seed(0))
    whole = round_trip(x, bits, signed, 16)
    parts = torch.cat([round_trip(part, bits, signed, 16) for part in x.split(16)])
    assert torch.equal(whole, parts)
    assert (whole - x).abs().max() < 0.12


def test_formats() -> None:
    assert {row.bits: row.block_size for row in FORMATS.values()} == {8: 256, 4: 128, "fp8": 256}
    with pytest.raises(ValueError, match="8, 4 or 'fp8' bits, got 3"):
        get_format(3)
