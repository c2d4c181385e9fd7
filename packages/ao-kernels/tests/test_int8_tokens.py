"""Quantization of tokens inside the compiled kernels, bit for bit against
ao_core.numerics.quantize_tokens."""

from collections.abc import Iterator

import pytest
import torch
from linear_samples import isa_variants
from torch import Tensor

from ao_core.numerics import quantize_tokens

_C = pytest.importorskip("ao_kernels._C")

_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
_TINY = torch.finfo(torch.float32).tiny


@pytest.fixture(
    params=[context for _, context in isa_variants()], ids=[n for n, _ in isa_variants()]
)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


def _check(x: Tensor) -> None:
    for mapping in ("symmetric", "asymmetric"):
        codes, scale, zero = _C.int8_tokens(2, x.contiguous(), mapping == "symmetric")
        expected, expected_scale, expected_zero = quantize_tokens(x, mapping=mapping)
        if expected_zero is None:
            expected_zero = torch.zeros_like(scale)
        assert torch.equal(codes, expected), f"{mapping}: {(codes != expected).sum()} codes differ"
        assert torch.equal(scale.view(torch.int32), expected_scale.view(torch.int32)), mapping
        assert torch.equal(zero, expected_zero), mapping


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_every_16_bit_value(isa: None, dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    _check(x[x.isfinite()][None])
    _check(x[None].T)  # one value a token: NaN and inf among them
    sorted_x = x[x.isfinite()].sort().values
    n = len(sorted_x) // 48 * 48
    _check(sorted_x[:n].reshape(-1, 48))  # tokens of every magnitude


@pytest.mark.parametrize("dtype", _DTYPES, ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("K", [1, 7, 8, 15, 16, 17, 63, 64, 100, 1000])
def test_random_tokens(isa: None, K: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(K)
    x = torch.randn(64, K, generator=generator)
    x *= torch.logspace(-45, 30, 64)[:, None] if dtype == torch.float32 else 1.0
    _check(x.to(dtype))
    _check(x.abs().to(dtype))
    _check(-x.abs().to(dtype))
    _check((x + 3).to(dtype))


def test_ties_round_to_even(isa: None) -> None:
    halves = torch.arange(-254, 255) / 2.0
    _check(halves[None])  # symmetric: the scale is 1
    _check(torch.cat((halves / 127 * 127.5, torch.tensor([-127.5, 127.5])))[None])  # asymmetric too


def test_values_beside_every_rounding_boundary(isa: None) -> None:
    for scale in (1.0, 0.1, 3.3e-5, 7e30):
        halves = (torch.arange(-254, 255) / 2.0).float() * scale
        up = torch.nextafter(halves, torch.tensor(torch.inf))
        down = torch.nextafter(halves, torch.tensor(-torch.inf))
        _check(torch.cat((halves, up, down))[None])


def test_extremes(isa: None) -> None:
    huge = torch.finfo(torch.float32).max
    rows = [
        [0.0, -0.0, 0.0],
        [huge, -huge, 1.0],
        [huge, huge, huge],
        [-huge, -huge, 0.0],
        [_TINY, -_TINY, 0.0],
        [1e-45, 0.0, -1e-45],
        [_TINY * 127, _TINY, 1e-45],
        [torch.inf, 1.0, 2.0],
        [-torch.inf, torch.inf, 0.0],
        [torch.nan, 1.0, torch.inf],
        [1.0, 1.0, 1.0],
        [-5.0, -4.0, -3.0],
        [1e38, -1e38, 1e30],
    ]
    _check(torch.tensor(rows))


def test_refuses_what_it_does_not_take() -> None:
    assert _C.int8_tokens(1, torch.zeros(3), True) is NotImplemented
    assert _C.int8_tokens(1, torch.zeros(3, 4).T, True) is NotImplemented
    assert _C.int8_tokens(1, torch.zeros(3, 4).double(), True) is NotImplemented
