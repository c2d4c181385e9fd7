"""What is checked of every op that quantizes in both directions, beside quantize_contract.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantize_contract import every_dtype, moved
from quantized_samples import (
    assert_same_bits,
    every_16_bit_value,
    halfway_values,
    matrices,
    values_beside_boundaries,
)
from torch import Tensor

from ao_kernels import force

two_dtypes = pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
SHAPES = [(1, 1), (17, 33), (128, 128), (130, 140)]


class Both:
    """An op and its calls."""

    op: Any
    shapes: tuple[tuple[int, ...], ...] = ((3, 40), (0, 8), (3, 0), (0, 0))
    meta_shapes: tuple[tuple[int, ...], ...] = ((3, 40), (0, 40), (3, 0), (33, 260))

    def calls_of(self, x: Tensor, dtype: torch.dtype, outputs: str) -> Iterator[tuple[Any, ...]]:
        """Calls in which not all outputs are wanted."""
        raise NotImplementedError


class BothBits(Both):
    """The op on ``device`` against the reference on the CPU. Few tiles: interpreted, one takes 0.1
    seconds."""

    device = "cpu"
    every = 16  # rows of all values

    def check(self, name: str, *args: Any) -> None:
        found = self.op(*moved(args, self.device))
        assert_same_bits(name, found, self.op.reference(*args))

    @two_dtypes
    def test_odd_matrices(self, dtype: torch.dtype) -> None:
        for name, x in list(matrices())[18:]:
            for args in list(self.calls(x, dtype))[: 1 if self.every > 1 else None]:
                self.check(f"{name} {args[1:]}", *args)

    @every_dtype
    def test_all_values(self, dtype: torch.dtype) -> None:
        """Of 16 bits, and those beside every boundary of rounding."""
        for x_dtype in (torch.bfloat16, torch.float16):
            values = every_16_bit_value(x_dtype)
            finite = values[values.isfinite()].sort().values
            x = finite[: len(finite) // 120 * 120].view(-1, 120)
            for args in self.calls(x[:: self.every], dtype):
                self.check(f"{x_dtype} {args[1:]}", *args)
        beside = values_beside_boundaries(dtype)[:: 3 * self.every]
        halves = halfway_values(dtype)
        halves = halves[: len(halves) // 4 * 4].view(4, -1)
        for x in (beside, halves):
            for args in self.calls(x, dtype):
                self.check(f"{args[1:]}", *args)

    def test_nothing_to_quantize(self, dtype: torch.dtype = torch.int8) -> None:
        for shape in self.shapes:
            for args in self.calls(torch.randn(shape).bfloat16(), dtype):
                self.check(f"{shape} {args[1:]}", *args)

    def test_shapes(self, dtype: torch.dtype = torch.float8_e4m3fn) -> None:
        generator = torch.Generator().manual_seed(2)
        for shape in SHAPES:
            x = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1) * 3
            for each in (x.bfloat16(), x.half().T):
                for args in self.calls(each, dtype):
                    self.check(f"{shape} {args[1:]}", *args)

    @pytest.mark.parametrize("outputs", ["rows", "columns"])
    def test_outputs_that_are_not_wanted_are_empty(
        self, outputs: str, dtype: torch.dtype = torch.float8_e4m3fn
    ) -> None:
        for x in (torch.randn(70, 140).bfloat16(), torch.randn(150, 20).T, torch.randn(0, 5)):
            for args in self.calls_of(x, dtype, outputs):
                self.check(f"{outputs} {args[1:]}", *args)
                everything = self.op.reference(*args[:-1], "both")
                there = [t for t in self.op.reference(*args) if t.shape != (0,)]
                found = [i for i, t in enumerate(self.op.reference(*args)) if t.shape != (0,)]
                assert_same_bits(outputs, tuple(there), tuple(everything[i] for i in found))
                if x.numel():
                    assert len(there) == (len(everything) + 1) // 2

    @two_dtypes
    def test_odd_elements(self, dtype: torch.dtype) -> None:
        """NaN and inf reach the scale and codes of their rows, columns, blocks or tensor alone."""
        for value in (torch.nan, -torch.inf):
            x = torch.randn(140, 50)
            x[133, 20] = value
            for args in self.calls(x.bfloat16(), dtype):
                self.check(f"{value} {args[1:]}", *args)


class Forced:
    """The Triton kernel, forced; interpreted in the child process of conftest.py."""

    pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy

    @pytest.fixture(autouse=True)
    def _only_triton(self) -> Iterator[None]:
        before = force("triton")
        yield
        force(before)


class BothRest:
    """Of the reference, on the CPU."""

    op: Any

    def test_refused_arguments(self) -> None:
        x, *others = next(self.calls(torch.randn(3, 4), torch.float8_e4m3fn))
        with pytest.raises(ValueError, match=r"outputs is 'all', not 'both' or 'rows' or 'col"):
            self.op(x, *others[:-1], "all")
        for shape in [(3,), (2, 2, 3, 4)]:
            with pytest.raises(ValueError, match=r"it must be \(M, K\)"):
                self.op(torch.randn(shape), *others)


class BothOnGpu(BothBits):
    """On a GPU, at sizes of models."""

    device = "cuda"
    every = 1

    def large(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for M, K in [(1, 4096), (4096, 1024), (300, 5000), (3, 40000), (30000, 16), (2047, 2049)]:
            x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
            yield x.bfloat16()
            yield x.half().T

    def test_more_than_2_to_31_elements(self) -> None:
        if torch.cuda.mem_get_info()[0] < 32 << 30:
            pytest.skip("needs 32 GiB of GPU memory")
        x = torch.zeros(2**19 + 16, 4112, dtype=torch.bfloat16, device="cuda")
        x[-16:] = torch.randn(16, 4112)
        for args in self.calls(x, torch.float8_e4m3fn):
            args = moved(args, "cuda") if args[0].device.type != "cuda" else args
            args = tuple(a.cuda() if isinstance(a, Tensor) else a for a in args)
            if "128, 128" in str(args[1:]):
                continue  # the last block ends elsewhere
            found = self.op(*args)
            assert found[0][-16:].float().abs().max() > 0
            assert not found[0][:-16].view(torch.uint8).any()
            transposed = next(t for t in found if t.shape == (4112, 2**19 + 16))
            assert transposed[:, -16:].float().abs().max() > 0
            assert not transposed[:, :-16].view(torch.uint8).any()


def assert_padded(x: Tensor, codes: Tensor, transposed: Tensor) -> None:
    """Shapes are multiples of 16, and padding is 0, or NaN beside a NaN scale (0 in int8)."""
    M, K = x.shape
    assert codes.shape == (-(-M // 16) * 16, -(-K // 16) * 16)
    assert transposed.shape == codes.shape[::-1]
    for found, R, C in ((codes, M, K), (transposed, K, M)):
        padding = torch.cat((found[R:].float().flatten(), found[:R, C:].float().flatten()))
        assert ((padding == 0) | padding.isnan()).all()
        if x.isfinite().all():
            assert not padding.isnan().any()
