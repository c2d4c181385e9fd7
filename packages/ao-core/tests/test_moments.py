"""The maps of the state against their equations: every code, every boundary, every bound."""

from __future__ import annotations

import pytest
import torch

from ao_core.moments import (
    FORMATS,
    code_values,
    dequantize_moment,
    get_format,
    quantize_moment,
    zero_moment,
)

MAPS = [(bits, signed) for bits in (8, 4, "fp8") for signed in (True, False)]


def round_trip(x: torch.Tensor, bits: int | str, signed: bool, block_size: int) -> torch.Tensor:
    codes, scale = quantize_moment(x, bits=bits, signed=signed, block_size=block_size)
    back = dequantize_moment(codes, scale, bits=bits, signed=signed, block_size=block_size)
    return back.flatten()[: x.numel()].view(x.shape)


def test_the_signed_map_of_8_bits_is_that_of_g711() -> None:
    """The mu-law decoder: bias 33, segments of 16 steps that double; in sixteenths of our unit."""
    values = code_values(8, signed=True)
    for code in range(128):
        segment, step = divmod(code, 16)
        expected = ((2 * step + 33) << segment) - 33
        assert values[code] * 16 == expected == -values[code + 128] * 16
    unsigned = code_values(8, signed=False)
    for code in range(256):
        segment, step = divmod(code, 16)
        assert unsigned[code] * 16 == ((2 * step + 33) << segment) - 32


def test_the_maps_of_four_bits() -> None:
    magnitudes = [0, 1, 2, 4, 6, 10, 14, 22]
    assert code_values(4, signed=True).tolist() == magnitudes + [-x for x in magnitudes]
    unsigned = code_values(4, signed=False) * 16
    steps = [((c % 4 + 4) << c // 4) * 8 - 31 for c in range(16)]
    assert unsigned.tolist() == steps


def edges(bits: int, signed: bool) -> torch.Tensor:
    """Where what goes to one value of a companded map begins and, of the last one, ends; float64.
    They are cells of 8 bits, and of 4 what is nearest."""
    each = FORMATS[bits].maps[signed]  # type: ignore[index]
    count = 2 ** (each.segment_bits + each.cell_bits)
    f = [
        2.0 ** (code >> each.cell_bits)
        * (2 + 2 * (code & (2**each.cell_bits - 1)) / 2**each.cell_bits)
        for code in range(count)
    ]
    ends = torch.tensor([*f, 2.0 ** (2**each.segment_bits + 1)], dtype=torch.float64) - each.bias
    if each.middles:
        return ends
    return torch.cat((ends[:1], (ends[:-1] + ends[1:]) / 2))


@pytest.mark.parametrize(("bits", "signed"), [m for m in MAPS if m[0] != "fp8"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-20, 1.0, 2.0**100])
def test_cells_by_enumeration(bits: int, signed: bool, scale: float) -> None:
    """Every code from its value, and from both ends of what goes to it."""
    begin = edges(bits, signed)
    count = len(begin) - 1
    values = code_values(bits, signed=signed)[:count].double()
    top = values[-1]
    assert FORMATS[bits].top(signed) == top
    inside = begin[1:-1]
    a, b = inside * (1 - 2.0**-18), inside * (1 + 2.0**-18)
    x = torch.cat((values, a, b))
    expected = torch.cat((torch.arange(count), torch.arange(count - 1), torch.arange(1, count)))
    if signed:
        x, expected = torch.cat((x, -x)), torch.cat((expected, expected + count))
    x = torch.cat((x, top.expand(-len(x) % 8)))  # its scale is that given
    codes, found = quantize_moment((x * scale).float(), bits=bits, signed=signed, block_size=len(x))
    assert found == scale
    back = dequantize_moment(codes, found, bits=bits, signed=signed, block_size=len(x))
    wanted = code_values(bits, signed=signed)[expected] * scale
    assert torch.equal(back.flatten()[: len(expected)], wanted)


BOUNDS = {(8, True): 0.01594, (8, False): 0.01588, (4, True): 0.18182, (4, False): 0.07674}
RELATIVE = {(8, True): (1e-2, 0.0421), (8, False): (1e-3, 0.0315), (4, False): (1e-1, 0.178)}


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
        assert (error <= (x.abs() * 2.0**-4 + 1e-6 * x.abs()).clamp(min=floor * 1.0001)).all()
        return
    assert error.max() <= BOUNDS[bits, signed] * 1.0001
    assert error.max() >= BOUNDS[bits, signed] * 0.99  # the bound is no larger than need be
    if (bits, signed) in RELATIVE:
        share, bound = RELATIVE[bits, signed]
        inside = x.abs() > share
        assert (error[inside] <= x[inside].abs() * bound).all()


def test_errors_of_roots_with_four_bits() -> None:
    """What the update divides by: within 0.0605 of the largest root."""
    x = torch.linspace(0, 1, 200_000)
    error = (round_trip(x**2, 4, False, len(x)).sqrt() - x).abs()
    assert 0.0600 <= error.max() <= 0.0606


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_zeros_small_blocks_and_nan(bits: int | str, signed: bool) -> None:
    n = 16
    x = torch.zeros(5, n)
    x[1] = 2.0**-140  # below the smallest scale
    x[2, 3], x[3, 4] = torch.nan, torch.inf
    x[4] = torch.linspace(0, 3.0e38, n)
    codes, scale = quantize_moment(x, bits=bits, signed=signed, block_size=n)
    back = round_trip(x, bits, signed, n)
    tiny = torch.finfo(torch.float32).tiny
    assert scale[0] == tiny
    assert scale[[0, 1, 4]].isfinite().all() and (scale[[0, 1, 4]] > 0).all()
    if signed:
        assert (back[0] == 0).all()
    else:  # no code of these maps is zero
        assert ((back[0] > 0) & (back[0] < tiny / 4)).all()
    assert back[2].isnan().all() and back[3].isnan().all()
    assert (codes[[2, 3]].view(torch.uint8) == 0).all()
    assert back[4].isfinite().all() and (back[4, -1] - 3.0e38).abs() <= 3.0e38 * 1e-6
    assert codes.shape == (5, get_format(bits).stored_width(n))


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_zero_moments_are_zeros_quantized(bits: int | str, signed: bool) -> None:
    expected = quantize_moment(torch.zeros(37), bits=bits, signed=signed, block_size=16)
    device = torch.device("cpu")
    found = zero_moment(37, bits=bits, signed=signed, block_size=16, device=device)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and torch.equal(x.view(torch.uint8), y.view(torch.uint8))


@pytest.mark.parametrize("bits", [8, 4, "fp8"])
def test_what_is_above_zero_stays_so_where_roots_divide(bits: int | str) -> None:
    x = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 1.0])
    back = round_trip(x, bits, False, 8)
    assert (back > 0).all()
    assert (back >= x * 0.25).all()


@pytest.mark.parametrize(("bits", "signed"), MAPS)
def test_blocks_do_not_see_each_other(bits: int | str, signed: bool) -> None:
    """37 elements in blocks of 16: the last has 5, and is what it would be alone."""
    x = torch.rand(37, generator=torch.Generator().manual_seed(0))
    whole = round_trip(x, bits, signed, 16)
    parts = torch.cat([round_trip(part, bits, signed, 16) for part in x.split(16)])
    assert torch.equal(whole, parts)
    assert (whole - x).abs().max() < 0.16


def test_formats() -> None:
    assert {row.bits: row.block_size for row in FORMATS.values()} == {8: 256, 4: 128, "fp8": 256}
    with pytest.raises(ValueError, match="8, 4 or 'fp8' bits, got 3"):
        get_format(3)
