"""int8_dynamic_intx_linear against its float64 reference: every width, every instruction set of
this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import odd_tokens, token_magnitude
from linear_samples import isa_variants, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int8_dynamic_intx_linear, layout


class TestInt8DynamicIntxLinear(OpContract):
    op = int8_dynamic_intx_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in (3, 1, 2, 4, 5, 6, 7, 8):
            for name, x, codes, scale, zero, group_size, bias in sample_intx(bits, dtype):
                yield Sample(name, (x, codes, scale, zero, bits, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, bits, group_size, bias = args
        size = token_magnitude(x, "asymmetric")
        return magnitude_intx(size, codes, scale, zero, bits, group_size, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, bits, group_size, bias = args
        w_NK = layout.dequantize_intx(
            codes,
            scale,
            zero,
            bits=bits,
            group_size=group_size,
            length=x.shape[-1],
            dtype=torch.float64,
        )
        return layout.linear(x, w_NK, bias)


def _results(*args: Any) -> Iterator[tuple[str, Tensor]]:
    for name, context in isa_variants():
        with context():
            yield name, int8_dynamic_intx_linear(*args)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", [8, 16, 24, 32, 64, 96, 128, 256, 512, 520, 1100])
@pytest.mark.parametrize("M", [1, 2, 3, 5, 9])
def test_sums_of_codes_are_exact(bits: int, group_size: int, M: int) -> None:
    """Whole numbers and scales of powers of two make every step exact: results are equal, not
    close."""
    K, N = 1100, 35
    n_groups = -(-K // group_size)
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    scale = 2.0 ** torch.randint(-2, 1, (N, n_groups))
    zero = torch.randint(0, 2**bits, (N, n_groups)).float() if M % 2 else None
    x = torch.randint(-128, 128, (M, K)).float()
    x[:, 0], x[:, 1] = -128.0, 127.0  # the scale is 1
    middle = torch.full((N, n_groups), 2.0 ** (bits - 1)) if zero is None else zero
    w = codes.double() - layout.expand_groups(middle.double(), group_size, K)
    expected = x.double() @ (w * layout.expand_groups(scale.double(), group_size, K)).T
    for name, y in _results(x, pack(codes, bits), scale, zero, bits, group_size):
        assert torch.equal(y, expected.float()), name


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_in_every_place(bits: int) -> None:
    """A single nonzero activation picks out one code of the row."""
    K = 640
    codes = ((torch.arange(K)[None] * 7 + torch.arange(5)[:, None]) % 2**bits).to(torch.uint8)
    x = torch.eye(K) * 255
    w = codes.float() - 2 ** (bits - 1)
    for group_size in (32, 128, K):
        scale = torch.ones(1, -(-K // group_size))
        for rows in (range(K), range(0, K, 13)):
            for name, y in _results(x[rows], pack(codes, bits), scale, None, bits, group_size):
                assert torch.equal(y, w.T[rows] * 255), name
        for k in range(0, K, 31):
            for name, y in _results(x[k], pack(codes, bits), scale, None, bits, group_size):
                assert torch.equal(y, w.T[k] * 255), name


@pytest.mark.parametrize("bits", [1, 3, 4, 7])
@pytest.mark.parametrize("M", [1, 9])
def test_padding_codes_have_no_influence(bits: int, M: int) -> None:
    K, N = 20, 9
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    x, scale = torch.randn(M, K), torch.rand(N, 1)
    clean = dict(_results(x, pack(codes, bits), scale, None, bits, K))
    dirty = dict(_results(x, pack(codes, bits, pad=2**bits - 1), scale, None, bits, K))
    for name in clean:
        assert torch.equal(clean[name], dirty[name]), name


@pytest.mark.parametrize("bits", [4, 5])
def test_odd_tokens_stay_in_their_rows(bits: int) -> None:
    K, N, group_size = 200, 40, 32
    codes = pack(torch.randint(0, 2**bits, (N, K), dtype=torch.uint8), bits)
    scale = torch.rand(N, 7) / 1e4
    x = odd_tokens(K)
    args = (codes, scale, None, bits, group_size)
    expected = int8_dynamic_intx_linear.reference(x.double(), *args)
    size = token_magnitude(x, "asymmetric").nan_to_num(0.0)
    bound = 2e-6 * magnitude_intx(size, codes, scale, None, bits, group_size, None) + 1e-40
    for name, y in _results(x, *args):
        assert torch.equal(y.isnan().all(1), expected.isnan().any(1)), name
        assert torch.equal(y.isnan().any(1), expected.isnan().any(1)), name
        assert (((y.double() - expected).abs() <= bound) | expected.isnan()).all(), name


def test_long_rows() -> None:
    """One group of 150000 codes of 8 bits: no int32 sum overflows."""
    K = 150_000
    codes = torch.full((2, K), 255, dtype=torch.uint8)
    codes[1] = 0
    x = torch.full((1, K), 2.0)
    x[0, 0] = 0.0
    for M in (1, 12):
        for name, y in _results(x.expand(M, K), codes, torch.ones(2, 1), None, 8, K):
            expected = torch.tensor([127.0, -128.0]) * 2.0 * (K - 1)
            assert torch.allclose(y, expected, rtol=1e-5), name


def test_refusals_are_in_the_callers_words() -> None:
    codes, x = pack(torch.zeros(8, 32, dtype=torch.uint8), 3), torch.randn(3, 32)
    with pytest.raises(ValueError, match="32 input features of 3 bits take 12"):
        int8_dynamic_intx_linear(x, codes[:, :8], torch.ones(8, 1), None, 3, 32)
    with pytest.raises(ValueError, match="bits is 9"):
        int8_dynamic_intx_linear(x, codes, torch.ones(8, 1), None, 9, 32)
    with pytest.raises(ValueError, match="group_size is 12"):
        int8_dynamic_intx_linear(x, codes, torch.ones(8, 3), None, 3, 12)
