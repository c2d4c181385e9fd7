"""int8_linear in Triton: in the interpreter, on a GPU, and what is said where it cannot run."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_contract import WeightOnlyOnGpu
from linear_samples import magnitude_int8, sample_int8
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_linear


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for name, *args in sample_int8(dtype):
        yield Sample(name, tuple(args))


def _call(M: int, N: int, K: int, group_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
    codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    scale = (torch.rand(N, -(-K // group_size)) / (64 * K**0.5)).bfloat16()
    return torch.randn(M, K).to(dtype), codes, scale, group_size, torch.randn(N)


class Int8Linear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = int8_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_int8(*args)

    def test_every_code(self) -> None:
        codes = torch.arange(-128, 128).to(torch.int8)[None]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            y = self.result(torch.eye(256, dtype=dtype), codes, torch.ones(1, 1), 256)
            assert torch.equal(y[:, 0], codes[0].to(dtype))

    def test_float32_activations_keep_their_bits(self) -> None:
        x = torch.tensor([[1 + 2.0**-23], [2.0**-100], [3.4028235e38], [-1 - 2.0**-15]])
        one = torch.ones(1, 1)
        assert torch.equal(self.result(x, one.to(torch.int8), one, 1), x)

    def test_nan_scales_stay_in_their_group(self) -> None:
        x, codes, scale, g, bias = _call(3, 20, 96, 32, torch.bfloat16)
        clean = self.result(x, codes, scale, g, bias)
        scale[7, 1] = float("nan")
        y = self.result(x, codes, scale, g, bias)
        others = [n for n in range(20) if n != 7]
        assert y[:, 7].isnan().all() and torch.equal(y[:, others], clean[:, others])

    def result(self, *args: Any) -> Tensor:
        return int8_linear(*(a.to(self.device) if isinstance(a, Tensor) else a for a in args)).cpu()


@pytest.mark.interpreted
class TestInterpreted(Int8Linear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Int8Linear, WeightOnlyOnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096, 4096), (16, 4096, 4096, 32), (64, 2048, 11008, 128)]
        for shape in [*shapes, (300, 1000, 5000, 200), (17, 4099, 4104, 64)]:
            yield Sample(f"{shape} {dtype}", _call(*shape, dtype))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    calls = [_call(M, 1024, 1024, 1024, torch.bfloat16) for M in (1, 300)]
    calls += [_call(40, 99, 100, 40, torch.float16)]
    for launch in compiled_launches("int8_linear", calls, architecture, monkeypatch):
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    assert int8_linear.why_not(*_call(1, 8, 32, 32, torch.float32))["triton"] == (
        "runs on cuda; the arguments are on cpu"
    )
