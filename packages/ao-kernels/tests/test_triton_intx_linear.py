"""intx_linear in Triton: in the interpreter, on a GPU, and what is said where it cannot run."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from gpu_contract import WeightOnlyOnGpu
from linear_samples import magnitude_intx, sample_intx
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import intx_linear

_BITS = (3, 1, 2, 4, 5, 6, 7, 8)


def _call(
    M: int, N: int, K: int, group_size: int, dtype: torch.dtype, bits: int, *, zero: bool = False
) -> tuple[Any, ...]:
    codes = torch.randint(0, 256, (N, -(-K // 8) * bits), dtype=torch.uint8)
    n_groups = -(-K // group_size)
    scale = (torch.rand(N, n_groups) / (2**bits * K**0.5)).bfloat16()
    zeros = (2 ** (bits - 1) + torch.randn(N, n_groups)).bfloat16() if zero else None
    return torch.randn(M, K).to(dtype), codes, scale, zeros, bits, group_size, None


class IntxLinear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = intx_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, bits, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, bits, group_size, bias)

    @pytest.mark.parametrize("bits", _BITS)
    def test_every_code_in_every_place(self, bits: int) -> None:
        K = max(64, 1 << bits)
        codes = torch.arange(K).remainder(1 << bits).to(torch.uint8)[None]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.eye(K, dtype=dtype)
            y = self.result(x, pack(codes, bits), torch.ones(1, 1), None, bits, K)
            assert torch.equal(y[:, 0], (codes[0].float() - 2 ** (bits - 1)).to(dtype))

    def test_padding_codes_have_no_influence(self) -> None:
        for bits, K in ((3, 21), (4, 20), (5, 9)):
            x, codes, scale, *others = _call(3, 8, K, K, torch.bfloat16, bits, zero=True)
            kept = pack(torch.full((8, K), 2**bits - 1, dtype=torch.uint8), bits)
            y = self.result(x, codes & kept, scale, *others)
            assert torch.equal(self.result(x, codes | ~kept, scale, *others), y)

    def result(self, *args: Any) -> Tensor:
        return intx_linear(*(a.to(self.device) if isinstance(a, Tensor) else a for a in args)).cpu()


@pytest.mark.interpreted
class TestInterpreted(IntxLinear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        """Of ten shapes, two for each number of bits."""
        for index, bits in enumerate(_BITS):
            first = 5 * (index % 2) + index // 2
            for name, x, codes, scale, zero, *others in islice(
                sample_intx(bits, dtype), first, first + 2
            ):
                yield Sample(name, (x, codes, scale, zero, bits, *others))


@pytest.mark.gpu
class TestOnGpu(IntxLinear, WeightOnlyOnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in _BITS:
            for name, x, codes, scale, zero, *others in sample_intx(bits, dtype):
                yield Sample(name, (x, codes, scale, zero, bits, *others))

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in _BITS:
            for shape in [(1, 4096, 4096, 128), (64, 2048, 4104, 64), (300, 1000, 5000, 200)]:
                args = _call(*shape, dtype, bits, zero=bits % 2 == 1)
                yield Sample(f"{bits} bits {shape} {dtype}", args)


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    calls = [
        _call(1, 1024, 1024, 128, torch.bfloat16, 3, zero=True),
        _call(64, 1024, 1024, 128, torch.bfloat16, 8),
        _call(1, 64, 100, 40, torch.float32, 2),
    ]
    for launch in compiled_launches("intx_linear", calls, architecture, monkeypatch):
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    assert intx_linear.why_not(*_call(1, 8, 32, 32, torch.float32, 3))["triton"] == (
        "runs on cuda; the arguments are on cpu"
    )
