"""int8_dynamic_linear against its float64 reference, on every instruction set of this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import odd_tokens, token_magnitude
from linear_samples import isa_variants, magnitude_int8, sample_int8
from torch import Tensor

from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int8_dynamic_linear, layout


class TestInt8DynamicLinear(OpContract):
    op = int8_dynamic_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, x, codes, scale, _, bias in sample_int8(dtype):
            yield Sample(name, (x, codes, scale[:, :1].contiguous(), bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, bias = args
        return magnitude_int8(token_magnitude(x, "symmetric"), codes, scale, x.shape[-1], bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, bias = args
        w_NK = layout.dequantize_int8(codes, scale, group_size=x.shape[-1], dtype=torch.float64)
        return layout.linear(x, w_NK, bias)


def _results(*args: Any) -> Iterator[tuple[str, Tensor]]:
    for name, context in isa_variants():
        with context():
            yield name, int8_dynamic_linear(*args)


@pytest.mark.parametrize("M", [1, 2, 3, 7, 8, 9, 40])
@pytest.mark.parametrize("K", [1, 63, 576, 4097])
def test_sums_of_codes_are_exact(M: int, K: int) -> None:
    """With scales of powers of two every step is exact: results are equal, not close."""
    codes = torch.randint(-127, 128, (33, K), dtype=torch.int8)
    x = torch.randint(-127, 128, (M, K)).float()
    x[:, 0] = 127.0
    expected = (x.double() @ codes.double().T) / 256
    for name, y in _results(x, codes, torch.full((33, 1), 1 / 256)):
        assert torch.equal(y, expected.float()), name


def test_sums_beyond_int32() -> None:
    """127 * 127 * K passes 2**31 at K = 133144; segments of 512 codes go to float32 long before."""
    K = 150_000
    codes = torch.full((3, K), 127, dtype=torch.int8)
    codes[1] = -127
    for M in (1, 12):
        for name, y in _results(torch.ones(M, K), codes, torch.ones(1, 1)):
            assert torch.allclose(y, torch.tensor([127.0, -127.0, 127.0]) * K, rtol=1e-5), name


def test_every_pair_of_codes() -> None:
    """Every activation code times every weight code, alone in its sum."""
    codes = torch.arange(-128, 128).to(torch.int8)[:, None].repeat(1, 2)
    codes[:, 1] = 0
    x = torch.stack((torch.arange(-127, 128).float(), torch.full((255,), 127.0)), 1)
    for rows in (x, x[:1], x[3:7]):
        expected = rows[:, :1] @ codes[:, :1].float().T
        for name, y in _results(rows, codes, torch.ones(1, 1)):
            assert torch.equal(y, expected), name


def test_odd_tokens_stay_in_their_rows() -> None:
    K = 200
    codes, scale = torch.randint(-127, 128, (40, K), dtype=torch.int8), torch.rand(40, 1) / 1e4
    x = odd_tokens(K)
    expected = int8_dynamic_linear.reference(x.double(), codes, scale)
    size = token_magnitude(x, "symmetric").nan_to_num(0.0)
    bound = 2e-6 * magnitude_int8(size, codes, scale, K, None) + 1e-40
    for name, y in _results(x, codes, scale):
        assert torch.equal(y.isnan().any(1), expected.isnan().any(1)), name
        assert torch.equal(y.isnan().all(1), expected.isnan().any(1)), name
        assert (((y.double() - expected).abs() <= bound) | expected.isnan()).all(), name


def test_refusals_are_in_the_callers_words() -> None:
    codes, x = torch.zeros(8, 32, dtype=torch.int8), torch.randn(3, 32)
    with pytest.raises(ValueError, match="codes have 16 columns; x has 32"):
        int8_dynamic_linear(x, codes[:, :16], torch.ones(8, 1))
    with pytest.raises(ValueError, match=r"take \(8, 1\)"):
        int8_dynamic_linear(x, codes, torch.ones(8, 2))
    with pytest.raises(TypeError, match=r"torch\.int8"):
        int8_dynamic_linear(x, codes.to(torch.uint8), torch.ones(8, 1))
    with pytest.raises(ValueError, match="bias has shape"):
        int8_dynamic_linear(x, codes, torch.ones(8, 1), torch.zeros(7))


def test_no_input_features() -> None:
    y = int8_dynamic_linear(
        torch.randn(3, 0), torch.zeros(4, 0, dtype=torch.int8), torch.ones(4, 0), torch.ones(4)
    )
    assert torch.equal(y, torch.ones(3, 4))
