"""quantize_tensorwise: the reference, the Triton kernels interpreted, compiled for absent GPUs, and
on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantize_contract import Bits, GpuBits, InterpretedBits, RestOfTorch, every_dtype
from quantized_samples import assert_same_bits, halfway_values
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches

from ao_kernels.ops import quantize_rowwise, quantize_tensorwise

_SCALES = (1.0, 0.01, 3e30, 1e-40, -2.0, 0.0, torch.inf, torch.nan)


class Tensorwise:
    op = quantize_tensorwise

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, None
        yield x, dtype, torch.tensor(0.037)


class GivenScales(Tensorwise):
    """Scales of every kind, in calls of the op."""

    @every_dtype
    def test_given_scales(self, dtype: torch.dtype) -> None:
        x = torch.cat((halfway_values(dtype), torch.tensor([0.0, -0.0, 1e38, -1e38])))
        for name, odd in [("finite", []), ("all", [torch.nan, torch.inf, -torch.inf])]:
            for value in _SCALES:
                scale = torch.tensor([[value]])
                self.check(f"{name} {value}", torch.cat((x, torch.tensor(odd))), dtype, scale)


class TestOp(GivenScales, Bits, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    @every_dtype
    def test_is_one_row(self, dtype: torch.dtype) -> None:
        x = torch.randn(6, 40)
        codes, scale = quantize_rowwise(x.view(1, -1), dtype)
        expected = (codes.view(6, 40), scale.view(()))
        assert_same_bits("one row", quantize_tensorwise(x, dtype), expected)
        assert_same_bits("given", quantize_tensorwise(x, dtype, scale), expected)

    def test_a_given_scale_saturates(self) -> None:
        x = torch.tensor([1000.0, -1000.0, torch.inf, -torch.inf, torch.nan, 2.0])
        codes, scale = quantize_tensorwise(x, torch.float8_e4m3fn, torch.tensor(2.0))
        assert codes[:4].float().tolist() == [448.0, -448.0, 448.0, -448.0] and scale == 2.0
        assert codes[4].float().isnan() and codes[5].float() == 1.0
        codes, _ = quantize_tensorwise(x, torch.int8, torch.tensor(2.0))
        assert codes.tolist() == [127, -127, 127, -127, 0, 1]

    def test_the_result_is_not_the_given_scale(self) -> None:
        given = torch.tensor(0.5)
        _, scale = quantize_tensorwise(torch.randn(3, 4), torch.int8, given)
        assert scale.data_ptr() != given.data_ptr()

    def test_refused_scales(self) -> None:
        x = torch.randn(3, 4)
        for scale in (torch.ones(2), torch.ones((), dtype=torch.bfloat16)):
            with pytest.raises(ValueError, match="it must be one float32 element"):
                quantize_tensorwise(x, torch.int8, scale)


@pytest.mark.interpreted
class TestInterpreted(GivenScales, InterpretedBits):
    @every_dtype
    def test_more_than_one_program(self, dtype: torch.dtype) -> None:
        x = torch.randn(70_000)
        x[69_999] = 9.0
        self.check("last", x.bfloat16(), dtype, None)
        x[40_000] = torch.nan
        self.check("NaN", x, dtype, None)

    def test_one_program_of_many_elements(self) -> None:
        self.check("one", torch.randn(17_000), torch.float8_e4m3fn, None)


@pytest.mark.gpu
class TestOnGpu(GivenScales, GpuBits):
    def test_more_than_2_to_31_elements(self) -> None:
        if torch.cuda.mem_get_info()[0] < 16 << 30:
            pytest.skip("needs 16 GiB of GPU memory")
        x = torch.zeros(2**31 + 1000, dtype=torch.bfloat16, device="cuda")
        x[-1000:] = torch.randn(1000)
        codes, scale = quantize_tensorwise(x, torch.float8_e4m3fn)
        expected = quantize_tensorwise.reference(x[-1000:].cpu(), torch.float8_e4m3fn)
        assert_same_bits("last", (codes[-1000:], scale), expected)
        assert not codes[:-1000].view(torch.uint8).any()


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    calls: list[tuple[Any, ...]] = []
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        for n in (1000, 40_000, 100_000):
            calls.append((torch.randn(n).bfloat16(), dtype, None))
        calls.append((torch.randn(1000), dtype, torch.ones(())))
    launches = list(compiled_launches("quantize_tensorwise", calls, architecture, monkeypatch))
    names = {"_peaks", "_quantize", "_quantize_blocks", "_quantize_long_rows"}
    assert {launch.name for launch in launches} == names
    for launch in launches:
        assert launch.shared_bytes <= 1 << 10, "elements go through shared memory"
        assert not launch.inexact_arithmetic()
