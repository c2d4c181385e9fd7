"""float8_int4_linear in Triton: interpreted, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import odd_tokens
from float8_samples import float8_activations
from gpu_contract import OnGpu
from linear_samples import magnitude_intx, sample_intx
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_int4_linear, layout


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for name, *args in sample_intx(4, dtype):
        yield Sample(name, tuple(args))


def _call(
    M: int, N: int, K: int, group_size: int, dtype: torch.dtype, *, zero: bool = False
) -> tuple[Any, ...]:
    codes = pack(torch.randint(0, 16, (N, K), dtype=torch.uint8), 4)
    n_groups = -(-K // group_size)
    scale = (torch.rand(N, n_groups) / K**0.5).bfloat16()
    zeros = (8 + torch.randn(N, n_groups)).bfloat16() if zero else None
    return torch.randn(M, K).to(dtype), codes, scale, zeros, group_size, None


class Float8Int4Linear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = float8_int4_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        return magnitude_intx(float8_activations(x, "row"), codes, scale, zero, 4, group_size, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        w_NK = layout.dequantize_intx(
            codes,
            scale,
            zero,
            bits=4,
            group_size=group_size,
            length=x.shape[-1],
            dtype=torch.float64,
        )
        return layout.linear(x, w_NK, bias)

    @pytest.mark.parametrize("M", [3, 70])
    def test_sums_of_codes_are_exact(self, M: int) -> None:
        x, codes, *_ = _call(M, 33, 96, 96, torch.float32)
        x = torch.randint(-16, 17, (M, 96)).float()
        x[:, 0] = 448.0  # makes the scale of the token 1
        ones = torch.ones(1, 1)
        expected = float8_int4_linear.reference(x.double(), codes, ones, None, 96)
        y = self.result(x, codes, ones, None, 96)
        assert torch.equal(y.double(), expected)

    def test_odd_tokens_stay_in_their_rows(self) -> None:
        x = odd_tokens(200)
        _, codes, scale, *others = _call(1, 40, 200, 40, torch.float32, zero=True)
        args = (codes, scale / 1e4, others[0], 40)
        expected = float8_int4_linear.reference(x.double(), *args)
        bound = self.magnitude((x, *args, None)) * 2e-6 + 1e-40
        y = self.result(x, *args)
        nan = expected.isnan()
        assert nan.any() and torch.equal(y.isnan(), nan)
        assert (((y.double() - expected).abs() <= bound) | nan).all()

    def result(self, *args: Any) -> Tensor:
        given = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        return float8_int4_linear(*given).cpu()


@pytest.mark.interpreted
class TestInterpreted(Float8Int4Linear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Float8Int4Linear, OnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096, 128), (64, 4096, 4096, 32), (300, 1000, 5000, 200)]
        for shape in shapes:
            yield Sample(f"{shape} {dtype}", _call(*shape, dtype, zero=shape[0] > 1))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [_call(M, 256, 1024, 128, torch.bfloat16, zero=M > 1) for M in (1, 32, 256)]
    calls.append(_call(90, 99, 500, 40, torch.float32))
    launches = list(compiled_launches("float8_int4_linear", calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == {"_quantize_blocks", "_int4_linear", "_finish"}
    for launch in launches:
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"
