"""int4_linear in Triton: interpreted at small sizes, compiled for absent GPUs, and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_contract import WeightOnlyOnGpu, on_gpu
from linear_samples import magnitude_intx, sample_intx
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.packing import pack, unpack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int4_linear


def _samples(dtype: torch.dtype) -> Iterator[Sample]:
    for name, *args in sample_intx(4, dtype):
        yield Sample(name, tuple(args))


def _call(
    M: int, N: int, K: int, group_size: int, dtype: torch.dtype, *, zero: bool = False
) -> tuple[Any, ...]:
    codes = torch.randint(0, 256, (N, -(-K // 8) * 4), dtype=torch.uint8)
    n_groups = -(-K // group_size)
    scale = (torch.rand(N, n_groups) / K**0.5).bfloat16()
    zeros = (8 + torch.randn(N, n_groups)).bfloat16() if zero else None
    return torch.randn(M, K).to(dtype), codes, scale, zeros, group_size, None


class Int4Linear:
    """The op, and the checks that are alike in the interpreter and on a GPU."""

    op = int4_linear
    device = "cpu"

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, 4, group_size, bias)

    def test_every_code_in_every_place(self) -> None:
        codes = torch.arange(16, dtype=torch.uint8).repeat(16)[None]
        scale = torch.ones(1, 1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            y = self.result(torch.eye(256, dtype=dtype), pack(codes, 4), scale, None, 256)
            assert torch.equal(y[:, 0], (codes[0].float() - 8).to(dtype))

    def test_padding_codes_have_no_influence(self) -> None:
        K = 20
        x, codes, scale, *others = _call(3, 8, K, K, torch.bfloat16, zero=True)
        codes[:, K // 2 :] = 0
        y = self.result(x, codes, scale, *others)
        codes[:, K // 2 :] = 0xFF
        assert torch.equal(self.result(x, codes, scale, *others), y)

    def test_group_size_above_the_row(self) -> None:
        x, codes, scale, *_ = _call(3, 8, 100, 100, torch.float32)
        y = self.result(x, codes, scale, None, 100)
        assert torch.equal(self.result(x, codes, scale, None, 2**62), y)

    def test_float32_activations_keep_their_bits(self) -> None:
        """Every plane counts: x has 24 significant bits, the code means 1, the scale is 1."""
        x = torch.tensor([[1 + 2.0**-23], [2.0**-100], [3.4028235e38], [-1 - 2.0**-15]])
        codes = pack(torch.tensor([[9]], dtype=torch.uint8), 4)
        assert torch.equal(self.result(x, codes, torch.ones(1, 1), None, 1), x)

    def result(self, *args: Any) -> Tensor:
        return int4_linear(*(a.to(self.device) if isinstance(a, Tensor) else a for a in args)).cpu()


@pytest.mark.interpreted
class TestInterpreted(Int4Linear, Interpreted):
    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)


@pytest.mark.gpu
class TestOnGpu(Int4Linear, WeightOnlyOnGpu):
    device = "cuda"
    backend, forced = "triton", True

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from _samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096, 128), (16, 4096, 4096, 32), (64, 2048, 11008, 128)]
        shapes += [(256, 4096, 4096, 4096), (300, 1000, 5000, 200), (17, 4099, 4104, 64)]
        for index, shape in enumerate(shapes):
            args = _call(*shape, dtype, zero=index % 2 == 1)
            yield Sample(f"{shape} {dtype}", args)

    def test_packings_are_portable(self) -> None:
        codes = torch.randint(0, 16, (64, 1000), dtype=torch.uint8)
        packed = pack(codes, 4)
        assert torch.equal(pack(codes.cuda(), 4).cpu(), packed)
        assert torch.equal(unpack(packed.cuda(), 4, 1000).cpu(), codes)

    def test_rows_do_not_depend_on_their_batch(self) -> None:
        """Every token of one launch shape has the same bits wherever it stands."""
        x, *others = on_gpu(_call(16, 512, 1024, 128, torch.bfloat16))
        y = int4_linear(x, *others)
        assert torch.equal(int4_linear(x.flip(0), *others), y.flip(0))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    calls = [
        _call(1, 1024, 1024, 128, torch.bfloat16, zero=True),
        _call(1, 64, 100, 40, torch.float32),
    ]
    calls += [_call(M, 1024, 1024, 128, torch.bfloat16) for M in (32, 64, 256)]
    calls += [
        _call(256, 1024, 1024, 128, torch.float32),
        _call(256, 99, 100, 40, torch.float16, zero=True),
    ]
    for launch in compiled_launches("int4_linear", calls, architecture, monkeypatch):
        assert launch.shared_bytes <= 99 << 10, f"{launch.name} fits no consumer GPU"


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    assert int4_linear.why_not(*_call(1, 8, 32, 32, torch.float32))["triton"] == (
        "runs on cuda; the arguments are on cpu"
    )
