"""Tokens to int8 in Triton, bit for bit what ao_core.numerics.quantize_tokens does on a CPU."""

import pytest
import torch
from dynamic_samples import odd_tokens
from torch import Tensor

from ao_core.numerics import quantize_tokens

_FLT_MIN = torch.finfo(torch.float32).tiny
_PADDING = 32


class Tokens:
    device = "cpu"

    def check(self, x_MK: Tensor) -> None:
        from ao_kernels.triton import tokens

        K = x_MK.shape[1]
        codes, scale = tokens.quantize_tokens(x_MK.to(self.device), padding=_PADDING)
        codes, scale = codes.cpu(), scale.cpu()
        expected, expected_scale, _ = quantize_tokens(x_MK)
        assert codes.shape[1] % _PADDING == 0 and not codes[:, K:].any()
        assert torch.equal(codes[:, :K], expected), (
            f"{(codes[:, :K] != expected).sum()} codes differ"
        )
        same = (scale == expected_scale[:, 0]) | (scale.isnan() & expected_scale[:, 0].isnan())
        assert same.all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("K", [1, 7, 32, 1000, 9001])
    def test_random_tokens(self, K: int, dtype: torch.dtype) -> None:
        M = min(64, 20_000 // K)
        x = torch.randn(M, K)
        x *= torch.logspace(-44, 30, M)[:, None] if dtype == torch.float32 else 1.0
        self.check(x.to(dtype))

    def test_odd_tokens(self) -> None:
        self.check(odd_tokens(200))
        self.check(odd_tokens(4097))

    def test_strided_tokens(self) -> None:
        self.check(torch.randn(12, 70)[::2, 5:60])

    def test_ties_round_to_even(self) -> None:
        self.check((torch.arange(-254, 255) / 2.0)[None])

    def test_values_beside_every_rounding_boundary(self) -> None:
        """A fused multiply-add in place of the rounded product would move some of these."""
        rows = []
        for scale in torch.logspace(-30, 30, 61):
            halves = (torch.arange(-254, 255) / 2.0) * scale
            up = torch.nextafter(halves, torch.tensor(torch.inf))
            down = torch.nextafter(halves, torch.tensor(-torch.inf))
            rows.append(torch.cat((halves, up, down)))
        self.check(torch.stack(rows))


@pytest.mark.interpreted
class TestInterpreted(Tokens):
    pass


@pytest.mark.gpu
class TestOnGpu(Tokens):
    device = "cuda"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_16_bit_value(self, dtype: torch.dtype) -> None:
        """Not interpreted: the interpreter reads subnormal bfloat16 wrongly."""
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = x[x.isfinite()]
        self.check(finite[None])
        self.check(x[:, None])
        self.check(finite.sort().values[: len(finite) // 48 * 48].reshape(-1, 48))

    def test_many_tokens(self) -> None:
        """A million products that a division or rounding off by one bit would show."""
        self.check(torch.randn(4096, 1024) * torch.rand(4096, 1))

    def test_smallest_scale(self) -> None:
        self.check(torch.tensor([[_FLT_MIN * 127, _FLT_MIN, 1e-45], [1e-45, 0.0, -1e-45]]))
