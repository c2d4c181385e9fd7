"""float8_dynamic_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import odd_tokens
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
from ao_kernels.ops import float8_dynamic_linear, layout

_ACTIVATIONS = ("row", "tensor", "block")


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for index, (name, *args, bias) in enumerate(sample_float8(dtype)):
        activation = _ACTIVATIONS[index % 3]
        yield Sample(f"{name}, {activation} activations", (*args, activation, bias))


def _call(*sizes: Any, activation: str, **others: Any) -> tuple[Any, ...]:
    *args, bias = float8_call(*sizes, **others)
    return (*args, activation, bias)


class Float8DynamicLinear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = float8_dynamic_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, block_n, block_k, activation, bias = args
        q = float8_activations(x, activation, block_k)
        return magnitude_float8(q, codes, scale, block_n, block_k, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, block_n, block_k, _, bias = args
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float64)
        return layout.linear(x, w_NK, bias)

    @pytest.mark.parametrize("activation", _ACTIVATIONS)
    def test_every_activation_with_every_weight(self, activation: str) -> None:
        for block_n, block_k in [(1, WHOLE), (WHOLE, WHOLE), (16, 64), (1, 24)]:
            for M in (2, 70):
                args = _call(M, 40, 200, block_n, block_k, torch.float32, activation=activation)
                expected = float8_dynamic_linear.reference(args[0].double(), *args[1:])
                y = self.result(*args)
                assert ((y - expected).abs() <= self.bound(args, expected)).all(), (block_n, M)

    @pytest.mark.parametrize("activation", ["row", "block"])
    def test_odd_tokens_stay_in_their_rows(self, activation: str) -> None:
        x = odd_tokens(200)
        _, codes, scale, *others = _call(1, 40, 200, 1, 40, torch.float32, activation=activation)
        args = (codes, scale / 1e4, *others)  # no result is too large for float32
        expected = float8_dynamic_linear.reference(x.double(), *args)
        bound = self.magnitude((x, *args)) * 2e-6 + 1e-40
        y = self.result(x, *args)
        nan = expected.isnan()
        assert nan.any() and torch.equal(y.isnan(), nan)
        assert (((y.double() - expected).abs() <= bound) | nan).all()

    def test_codes_are_multiplied_exactly(self) -> None:
        codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
        codes = codes[codes.float().isfinite()][:, None].repeat(1, 2)
        codes[:, 1] = 0.0
        x = torch.stack((codes[:, 0].float(), torch.full((len(codes),), 448.0)), 1)
        for M in (3, len(codes)):
            y = self.result(x[:M], codes, torch.ones(1, 1), 256, 2, "row")
            assert torch.equal(y, x[:M, :1] * codes[:, 0].float())

    def test_a_block_longer_than_programs_hold(self) -> None:
        K = 40_000
        args = _call(1, 8, K, 1, 20_000, torch.float32, activation="block")
        reason = float8_dynamic_linear.why_not(*(on_gpu(args) if self.device == "cuda" else args))
        assert reason["triton"] == "block_k is 20000; the Triton kernel takes up to 16384"

    def result(self, *args: Any) -> Tensor:
        given = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        return float8_dynamic_linear(*given).cpu()


@pytest.mark.interpreted
class TestInterpreted(Float8DynamicLinear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Float8DynamicLinear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, (*args, bias) in large_float8(dtype):
            for activation in _ACTIVATIONS:
                yield Sample(f"{name}, {activation} activations", (*args, activation, bias))

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        bound = super().bound(args, expected)
        if multiplied_as_float8(args[0], args[1]):
            bound += 2.0**-10 * self.magnitude(args)
        return bound

    def test_the_library_is_taken(self) -> None:
        for block_n, activation in [(1, "row"), (WHOLE, "tensor"), (1, "tensor"), (WHOLE, "row")]:
            call = _call(
                65, 64, 128, block_n, WHOLE, torch.bfloat16, activation=activation,
                bias=torch.bfloat16,
            )  # fmt: skip
            args = on_gpu(call)
            assert (
                float8_dynamic_linear.why_not(*args).keys().isdisjoint({"triton", "triton:library"})
            )
            first = float8_dynamic_linear(*args)
            library = float8_dynamic_linear.kernels[-2]
            assert library.name == "triton:library"
            assert torch.equal(library.run(*args), first)
            assert torch.equal(float8_dynamic_linear(*args), first)  # by its plan

    def test_what_the_library_does_not_take(self) -> None:
        bfloat16, row = torch.bfloat16, {"activation": "row"}
        for call, reason in [
            (_call(64, 64, 128, 1, WHOLE, bfloat16, **row), "64 tokens"),
            (_call(65, 63, 128, 1, WHOLE, bfloat16, **row), "63 x 128"),
            (_call(65, 64, 120, 1, WHOLE, bfloat16, **row), "64 x 120"),
            (_call(65, 64, 128, 1, WHOLE, torch.float16, **row), "bfloat16 activations"),
            (_call(65, 64, 128, 1, WHOLE, bfloat16, bias=torch.float32, **row), "and bias"),
            (_call(65, 64, 128, 64, 64, bfloat16, **row), "blocks of the weight"),
            (_call(65, 64, 128, 1, WHOLE, bfloat16, kind=torch.float8_e5m2, **row), "e5m2"),
        ]:
            assert reason in float8_dynamic_linear.why_not(*on_gpu(call))["triton:library"]


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16 = torch.bfloat16
    calls = [
        _call(M, 256, 1024, *block, bfloat16, activation=activation)
        for M in (1, 64, 256)
        for block, activation in [((1, WHOLE), "row"), ((128, 128), "block")]
    ]
    calls += [_call(100, 64, 1024, WHOLE, WHOLE, torch.float32, activation="tensor")]
    calls += [_call(90, 64, 100, 1, 40, torch.float16, activation="row")]
    calls += [_call(90, 64, 256, 1, 64, bfloat16, activation="row", kind=torch.float8_e5m2)]
    launches = list(compiled_launches("float8_dynamic_linear", calls, architecture, monkeypatch))
    names = {launch.name for launch in launches}
    assert names == {"_quantize_blocks", "_peaks", "_quantize", "_float8_product", "_finish"}
    products = [launch.ptx for launch in launches if launch.name == "_float8_product"]
    as_float8 = [ptx for ptx in products if "e4m3.e4m3" in ptx]
    assert len(as_float8) == (3 if architecture >= 89 else 0)
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    args = _call(1, 8, 32, 1, 32, torch.float32, activation="row")
    reasons = float8_dynamic_linear.why_not(*args)
    assert reasons["triton"] == "runs on cuda; the arguments are on cpu"
