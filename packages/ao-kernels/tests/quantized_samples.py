"""What the tests of the quantize ops share: inputs of every kind, and equality of bits."""

from collections.abc import Iterator

import torch
from dynamic_samples import odd_tokens
from torch import Tensor

CODE_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def matrices() -> Iterator[tuple[str, Tensor]]:
    """Matrices of at least a column whose rows, blocks or all elements are to be quantized."""
    generator = torch.Generator().manual_seed(0)
    for M, K in [(1, 1), (5, 7), (3, 40), (1, 1000), (33, 128), (2, 4099)]:
        x = torch.randn(M, K, generator=generator)
        for dtype in X_DTYPES:
            yield f"{M} x {K} {dtype}", x.to(dtype)
    sizes = torch.randn(76, 24, generator=generator) * torch.logspace(-44, 30, 76)[:, None]
    yield "every magnitude", sizes
    yield "odd tokens", odd_tokens(200)
    yield "odd bfloat16", odd_tokens(130).bfloat16()
    yield "a part of rows", torch.randn(12, 70, generator=generator)[::2, 5:60]
    yield "columns", torch.randn(30, 12, generator=generator).T
    yield "one row for all", torch.randn(1, 40, generator=generator).expand(4, 40)


def every_16_bit_value(dtype: torch.dtype) -> Tensor:
    """(65536,): all values of a 16-bit dtype, NaN and inf among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def unscaled(values: Tensor, dtype: torch.dtype) -> Tensor:
    """(n,) -> (rows, 4096): those values that codes reach without a scale, and in each row one that
    makes the scale 1."""
    high = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    within = values[values.float().abs() <= high]
    filled = torch.nn.functional.pad(within, (0, -len(within) % 4095)).view(-1, 4095)
    return torch.nn.functional.pad(filled, (0, 1), value=high)


def halfway_values(dtype: torch.dtype) -> Tensor:
    """Every midpoint between neighbouring codes, its neighbours in float32, and the codes."""
    if dtype == torch.int8:
        codes = torch.arange(-127, 128).float()
    else:
        codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
        codes = codes[codes.isfinite()].sort().values
    middle = (codes[1:] + codes[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    up, down = torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)
    return torch.cat((codes, middle, up, down))


def values_beside_boundaries(dtype: torch.dtype) -> Tensor:
    """(rows, n): halfway values times scales of many sizes, with the element that gives the scale:
    a quotient off by its last bit would move some codes."""
    generator = torch.Generator().manual_seed(1)
    values = halfway_values(dtype)
    scales = torch.rand(40, generator=generator) * torch.logspace(-37, 30, 40)
    x = torch.cat((values, values.abs().max()[None])) * scales[:, None]
    others = torch.nextafter(x, x * 2), torch.nextafter(x, torch.zeros(()))
    return torch.cat((x, *others))


def assert_same_bits(name: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Codes and scales, in any order, have equal bits; all NaN scales count as one."""
    for each, wanted in zip(found, expected, strict=True):
        each, wanted = each.cpu(), wanted.cpu()
        assert each.dtype == wanted.dtype and each.shape == wanted.shape, (
            f"{name}: {each.dtype} {tuple(each.shape)}, expected {wanted.dtype} "
            f"{tuple(wanted.shape)}"
        )
        if each.dtype == torch.float32:
            same = (each == wanted) | (each.isnan() & wanted.isnan())
            assert same.all(), f"{name}: {(~same).sum()} of {same.numel()} scales differ"
            continue
        assert each.is_contiguous(), f"{name}: stride {each.stride()}"
        if each.dtype == torch.int32:
            assert torch.equal(each, wanted), f"{name}: {each}, expected {wanted}"
            continue
        differ = each.view(torch.uint8) != wanted.view(torch.uint8)
        assert not differ.any(), (
            f"{name}: {differ.sum()} of {differ.numel()} codes differ, the first: "
            f"{each.float()[differ][0]}, expected {wanted.float()[differ][0]}"
        )
