"""float8_static_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import (
    WHOLE,
    float8_activations,
    float8_call,
    large_float8,
    magnitude_float8,
    multiplied_as_float8,
    sample_float8,
)
from gpu_contract import OnGpu, on_gpu
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_static_linear, layout


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for index, (name, *args) in enumerate(sample_float8(dtype)):
        yield Sample(name, _with_scale(tuple(args), [3.0, 0.5][index % 2]))  # cuts half of them


def _with_scale(args: tuple[Any, ...], largest: float) -> tuple[Any, ...]:
    return (*args[:3], torch.full((1, 1), largest / 448), *args[3:])


class Float8StaticLinear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = float8_static_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, x_scale, block_n, block_k, bias = args
        q = float8_activations(x, "tensor", scale=x_scale)
        return magnitude_float8(q, codes, scale, block_n, block_k, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, _, block_n, block_k, bias = args
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float64)
        return layout.linear(x, w_NK, bias)

    def test_what_is_beyond_the_range_is_cut(self) -> None:
        codes, ones = torch.eye(32).to(torch.float8_e4m3fn), torch.ones(1, 1)
        x = torch.full((4, 32), 1e6)
        x[1], x[2, 3], x[3, 7] = -500.0, torch.inf, torch.nan
        y = self.result(x, codes, ones, ones, 32, 32)
        assert torch.equal(y[0], torch.full((32,), 448.0)) and torch.equal(y[1], -y[0])
        assert y[2:].isnan().all()  # cutting inf would hide it

    def result(self, *args: Any) -> Tensor:
        given = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        return float8_static_linear(*given).cpu()


@pytest.mark.interpreted
class TestInterpreted(Float8StaticLinear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Float8StaticLinear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, args in large_float8(dtype):
            yield Sample(name, _with_scale(args, 3.0))

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        bound = super().bound(args, expected)
        if multiplied_as_float8(args[0], args[1]):
            bound += 2.0**-10 * self.magnitude(args)
        return bound

    def test_the_library_is_taken(self) -> None:
        for block_n in (1, WHOLE):
            call = float8_call(65, 64, 128, block_n, WHOLE, torch.bfloat16, bias=torch.bfloat16)
            args = on_gpu(_with_scale(call, 3.0))
            first = float8_static_linear(*args)
            library = float8_static_linear.kernels[-2]
            assert library.name == "triton:library" and library.supports(*args) is None
            assert torch.equal(library.run(*args), first)
            assert torch.equal(float8_static_linear(*args), first)  # by its plan


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [
        _with_scale(float8_call(M, 256, 1024, *block, torch.bfloat16), 3.0)
        for M in (1, 256)
        for block in [(1, WHOLE), (128, 128)]
    ]
    launches = list(compiled_launches("float8_static_linear", calls, architecture, monkeypatch))
    names = {launch.name for launch in launches}
    assert names == {"_quantize", "_float8_product", "_finish"}
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"
