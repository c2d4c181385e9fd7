"""int8_static_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_contract import OnGpu
from linear_samples import magnitude_int8, sample_int8
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.numerics import quantize_tokens
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_static_linear, layout


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for index, (name, x, codes, scale, _, bias) in enumerate(sample_int8(dtype)):
        x_scale = torch.full((1, 1), [3.0, 0.5][index % 2] / 127)  # cuts half of the samples
        yield Sample(name, (x, codes, scale[:, :1].contiguous(), x_scale, bias))


def _call(M: int, N: int, K: int, dtype: torch.dtype) -> tuple[Any, ...]:
    codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    x_scale = torch.full((1, 1), 3.0 / 127)
    return torch.randn(M, K).to(dtype), codes, torch.rand(N, 1) / K**0.5, x_scale, torch.randn(N)


class Int8StaticLinear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = int8_static_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, x_scale, bias = args
        q, s, _ = quantize_tokens(x.reshape(-1, x.shape[-1]), scale=x_scale)
        size = (q.double() * s.double()).reshape(x.shape)
        return magnitude_int8(size, codes, scale, x.shape[-1], bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, _, bias = args
        w_NK = layout.dequantize_int8(codes, scale, group_size=x.shape[-1], dtype=torch.float64)
        return layout.linear(x, w_NK, bias)

    @pytest.mark.parametrize("K", [32, 9000])
    def test_what_is_beyond_the_range_is_cut(self, K: int) -> None:
        codes, ones = torch.zeros(32, K, dtype=torch.int8), torch.ones(1, 1)
        codes[:, K - 32 :] = torch.eye(32).to(torch.int8)
        x = torch.full((4, K), 1e6)
        x[1], x[2, 3], x[3, K - 1] = -128.0, torch.inf, torch.nan
        y = self.result(x, codes, ones, ones)
        assert torch.equal(y[0], torch.full((32,), 127.0)) and torch.equal(y[1], -y[0])
        assert y[2:].isnan().all()

    def result(self, *args: Tensor) -> Tensor:
        return int8_static_linear(*(a.to(self.device) for a in args)).cpu()


@pytest.mark.interpreted
class TestInterpreted(Int8StaticLinear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Int8StaticLinear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for shape in [(1, 4096, 4096), (16, 2048, 11008), (300, 1000, 5000), (1024, 4096, 4096)]:
            yield Sample(f"{shape} {dtype}", _call(*shape, dtype))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [_call(M, 1024, 1024, torch.bfloat16) for M in (1, 64, 256)]
    calls.append(_call(3, 99, 10_000, torch.float32))
    launches = list(compiled_launches("int8_static_linear", calls, architecture, monkeypatch))
    names = {launch.name for launch in launches}
    assert names == {"_quantize_static_rows", "_int8_linear", "_finish"}
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"
        if launch.name.startswith("_quantize"):
            assert "div.rn.f32" in launch.ptx, "a division is not an IEEE division"
            assert not any(word in launch.ptx for word in ("fma.", "ftz", "approx"))
