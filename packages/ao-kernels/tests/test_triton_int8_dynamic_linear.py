"""int8_dynamic_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import odd_tokens, token_magnitude
from gpu_contract import OnGpu
from linear_samples import magnitude_int8, sample_int8
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.numerics import quantize_tokens
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_dynamic_linear, layout


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for name, x, codes, scale, _, bias in sample_int8(dtype):
        yield Sample(name, (x, codes, scale[:, :1].contiguous(), bias))


def _call(M: int, N: int, K: int, dtype: torch.dtype) -> tuple[Any, ...]:
    codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    return torch.randn(M, K).to(dtype), codes, torch.rand(N, 1) / K**0.5, torch.randn(N)


class Int8DynamicLinear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = int8_dynamic_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, bias = args
        return magnitude_int8(token_magnitude(x, "symmetric"), codes, scale, x.shape[-1], bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, bias = args
        w_NK = layout.dequantize_int8(codes, scale, group_size=x.shape[-1], dtype=torch.float64)
        return layout.linear(x, w_NK, bias)

    @pytest.mark.parametrize("M", [1, 40])
    @pytest.mark.parametrize("K", [1, 63, 576])
    def test_sums_of_codes_are_exact(self, M: int, K: int) -> None:
        codes = torch.randint(-127, 128, (33, K), dtype=torch.int8)
        x = torch.randint(-127, 128, (M, K)).float()
        x[:, 0] = 127.0
        expected = (x.double() @ codes.double().T) / 256
        y = self.result(x, codes, torch.full((33, 1), 1 / 256))
        assert torch.equal(y, expected.float())

    def test_every_pair_of_codes(self) -> None:
        codes = torch.arange(-128, 128).to(torch.int8)[:, None].repeat(1, 2)
        codes[:, 1] = 0
        x = torch.stack((torch.arange(-127, 128).float(), torch.full((255,), 127.0)), 1)
        y = self.result(x, codes, torch.ones(1, 1))
        assert torch.equal(y, x[:, :1] @ codes[:, :1].float().T)

    def test_sums_beyond_int32(self) -> None:
        K = 150_000
        codes = torch.full((3, K), 127, dtype=torch.int8)
        codes[1] = -127
        for M in (1, 3):
            y = self.result(torch.ones(M, K), codes, torch.ones(1, 1))
            assert torch.allclose(y, torch.tensor([127.0, -127.0, 127.0]) * K, rtol=1e-5)

    def test_odd_tokens_stay_in_their_rows(self) -> None:
        K = 200
        codes, scale = torch.randint(-127, 128, (40, K), dtype=torch.int8), torch.rand(40, 1) / 1e4
        x = odd_tokens(K)
        expected = int8_dynamic_linear.reference(x.double(), codes, scale)
        q, s, _ = quantize_tokens(x)
        bound = (s.double() * q.double().abs()) @ (codes.double().abs() * scale).T * 2e-6 + 1e-40
        y = self.result(x, codes, scale)
        nan = expected.isnan()
        assert nan.any() and torch.equal(y.isnan(), nan)
        assert (((y.double() - expected).abs() <= bound) | nan).all()

    def result(self, *args: Tensor) -> Tensor:
        return int8_dynamic_linear(*(a.to(self.device) for a in args)).cpu()


@pytest.mark.interpreted
class TestInterpreted(Int8DynamicLinear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Int8DynamicLinear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096), (16, 2048, 11008), (64, 4096, 4096), (300, 1000, 5000)]
        for shape in [*shapes, (17, 4099, 4104), (1024, 4096, 4096)]:
            yield Sample(f"{shape} {dtype}", _call(*shape, dtype))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    calls = [_call(M, 1024, 1024, torch.bfloat16) for M in (1, 32, 64, 256)]
    calls += [_call(1, 64, 100, torch.float32), _call(256, 99, 5000, torch.float16)]
    calls.append(_call(1, 8, 150_000, torch.float16))
    launches = list(compiled_launches("int8_dynamic_linear", calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == {
        "_quantize_blocks",
        "_quantize_long_rows",
        "_int8_linear",
        "_finish",
    }
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"
        if launch.name.startswith("_quantize"):
            assert "div.rn.f32" in launch.ptx, "a division is not an IEEE division"
            assert not any(word in launch.ptx for word in ("fma.", "ftz", "approx"))


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    assert int8_dynamic_linear.why_not(*_call(1, 8, 32, torch.float32))["triton"] == (
        "runs on cuda; the arguments are on cpu"
    )
