"""What is checked of every op that quantizes activations: bits, and the rest of torch.

A test module gives the op and its calls to Bits (with a device of its own for the interpreter and a
GPU) and to RestOfTorch. Expected bits are those of the reference on the CPU, whose numerics
ao-core tests.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantized_samples import (
    CODE_DTYPES,
    X_DTYPES,
    assert_same_bits,
    every_16_bit_value,
    halfway_values,
    matrices,
    unscaled,
    values_beside_boundaries,
)
from torch import Tensor

from ao_kernels import force

every_dtype = pytest.mark.parametrize("dtype", CODE_DTYPES, ids=str)


def moved(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """The arguments on a device, with their strides."""
    return tuple(_moved(a, device) if isinstance(a, Tensor) else a for a in args)


def _moved(x: Tensor, device: str) -> Tensor:
    there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return there.copy_(x) if 0 not in x.stride() else x.to(device)


class Bits:
    """``op`` on ``device`` against the reference on the CPU."""

    op: Any
    device = "cpu"
    times = 1
    every = 1  # row of a matrix with all values of 16 bits
    shapes: tuple[tuple[int, ...], ...] = (
        (2, 3, 40),
        (2, 1, 2, 24),
        (0, 8),
        (3, 0),
        (2, 0, 8),
        (0, 0),
    )

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        """Arguments with which x is quantized."""
        raise NotImplementedError

    def check(self, name: str, *args: Any) -> None:
        expected = self.op.reference(*args)
        args = moved(args, self.device)
        for _ in range(self.times):
            assert_same_bits(name, self.op(*args), expected)

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        return matrices()

    @every_dtype
    def test_matrices(self, dtype: torch.dtype) -> None:
        for name, x in self.matrices():
            for args in self.calls(x, dtype):
                self.check(f"{name} {args[1:]}", *args)

    @every_dtype
    @pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_16_bit_value(self, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
        values = every_16_bit_value(x_dtype)
        finite = values[values.isfinite()].sort().values
        odd = values[~values.isfinite()][:, None]
        sorted_rows = finite[: len(finite) // 48 * 48].view(-1, 48)
        for x in (unscaled(finite, dtype), finite[None], sorted_rows[:: self.every], odd[::97]):
            for args in self.calls(x, dtype):
                self.check(f"{tuple(x.shape)} {args[1:]}", *args)

    @every_dtype
    def test_halves_round_to_even(self, dtype: torch.dtype) -> None:
        x = halfway_values(dtype)[None]
        for args in self.calls(x, dtype):
            self.check(str(args[1:]), *args)

    @every_dtype
    def test_values_beside_every_rounding_boundary(self, dtype: torch.dtype) -> None:
        for args in self.calls(values_beside_boundaries(dtype), dtype):
            self.check(str(args[1:]), *args)

    @every_dtype
    def test_zeros_keep_their_sign(self, dtype: torch.dtype) -> None:
        for x in (torch.tensor([[0.0, -0.0, 3.0, -3.0]]), torch.tensor([[0.0, -0.0]])):
            for args in self.calls(x, dtype):
                self.check(str(args[1:]), *args)

    @every_dtype
    def test_leading_dimensions_and_no_elements(self, dtype: torch.dtype) -> None:
        for shape in self.shapes:
            for args in self.calls(torch.randn(shape).bfloat16(), dtype):
                self.check(str(shape), *args)
        x = torch.randn(3, 4, 40).transpose(0, 1)
        for args in self.calls(x if len(self.shapes[0]) > 2 else x[1].T, dtype):
            self.check("transposed", *args)


class InterpretedBits(Bits):
    """The Triton kernel, forced; runs in the child process of conftest.py. Few programs: one takes
    10 milliseconds."""

    pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy
    every = 16

    @pytest.fixture(autouse=True)
    def _only_triton(self) -> Iterator[None]:
        before = force("triton")
        yield
        force(before)

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Every second of those that differ in size and dtype; the last six are special."""
        found = list(matrices())
        yield from found[:-6:2] + found[-6:]

    def test_what_it_does_not_take(self) -> None:
        (args, *_) = self.calls(torch.randn(2, 8, dtype=torch.float64), torch.int8)
        with pytest.raises(RuntimeError, match=r"AO_KERNELS=triton is set.*float64"):
            self.op(*args)


class GpuBits(Bits):
    """On a GPU, at sizes that models have, and in graphs."""

    device = "cuda"
    times = 2  # the second call starts what the first compiled

    def large(self) -> Iterator[Tensor]:
        """Activations on the CPU."""
        generator = torch.Generator().manual_seed(0)
        for M, K in [(1, 4096), (16, 14336), (4096, 1024), (300, 5000), (3, 40000), (70000, 16)]:
            x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
            yield x.bfloat16()
            yield x

    @every_dtype
    def test_large_shapes(self, dtype: torch.dtype) -> None:
        for x in self.large():
            for args in self.calls(x, dtype):
                self.check(f"{tuple(x.shape)} {args[1:]}", *args)

    @every_dtype
    def test_the_kernel_is_taken(self, dtype: torch.dtype) -> None:
        for args in self.calls(torch.randn(4, 256), dtype):
            assert "triton" not in self.op.why_not(*moved(args, "cuda"))

    @every_dtype
    def test_the_reference_gives_the_same_bits_there(self, dtype: torch.dtype) -> None:
        for args in self.calls(torch.randn(64, 256), dtype):
            expected = self.op.reference(*args)
            assert_same_bits(str(args[1:]), self.op.reference(*moved(args, "cuda")), expected)

    @every_dtype
    def test_addresses_that_are_not_aligned(self, dtype: torch.dtype) -> None:
        """Between aligned ones of the same shape, so that the wrong compiled kernel would show."""
        data = torch.randn(16 * 256 + 16, device="cuda").bfloat16()
        for offset in (0, 1, 0, 3, 8, 1):
            x = data[offset : offset + 16 * 256].view(16, 256)
            for _, *others in self.calls(x, dtype):
                wanted = self.op.reference(x.cpu(), *others)
                found = self.op(x, *moved(tuple(others), "cuda"))
                assert_same_bits(f"offset {offset}", found, wanted)

    @every_dtype
    def test_graphs_replay_on_new_data(self, dtype: torch.dtype) -> None:
        for args in self.calls(torch.randn(64, 256).bfloat16(), dtype):
            x, *others = moved(args, "cuda")
            self.op(x, *others)  # compiles
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = self.op(x, *others)
            for _ in range(3):
                x.copy_(torch.randn_like(x))
                graph.replay()
                assert_same_bits(str(others), found, self.op(x.clone(), *others))

    @pytest.mark.filterwarnings("ignore:TensorFloat32")  # Inductor's advice to every program
    def test_inductor(self) -> None:
        args, *_ = self.calls(torch.randn(64, 256), torch.float8_e4m3fn)
        x, *others = moved(args, "cuda")
        torch.compiler.reset()
        compiled = torch.compile(lambda x: self.op(x, *others), fullgraph=True)
        assert_same_bits("compiled", compiled(x), self.op(x, *others))


class RestOfTorch:
    """The op beside its numbers; runs on the CPU."""

    op: Any
    meta_shapes: tuple[tuple[int, ...], ...] = ((3, 40), (2, 3, 40), (0, 40), (3, 0))

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        raise NotImplementedError

    def first(self, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Any, ...]:
        return next(iter(self.calls(torch.randn(3, 40).bfloat16(), dtype)))

    @every_dtype
    def test_opcheck(self, dtype: torch.dtype) -> None:
        # Not the test of AOT dispatch, which adds up results: torch cannot add float8 numbers.
        tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
        for x_dtype in X_DTYPES:
            for x, *others in self.calls(torch.randn(3, 40).to(x_dtype), dtype):
                for each in (x, x.clone().requires_grad_()):
                    torch.library.opcheck(self.op.overload, (each, *others), test_utils=tests)

    def test_results_have_no_gradient(self) -> None:
        x, *others = self.first()
        expected = self.op(x, *others)
        for call in (self.op, self.op.overload):
            found = call(x.clone().requires_grad_(), *others)
            assert not any(each.requires_grad for each in found)
            assert_same_bits("with a gradient", found, expected)

    @every_dtype
    def test_compiles_in_one_graph(self, dtype: torch.dtype) -> None:
        x, *others = self.first(dtype)
        torch.compiler.reset()
        compiled = torch.compile(lambda x: self.op(x, *others), fullgraph=True, backend="aot_eager")
        assert_same_bits("compiled", compiled(x), self.op(x, *others))
        twice = torch.cat((x, x))
        assert_same_bits("compiled twice", compiled(twice), self.op(twice, *others))

    def test_exports(self) -> None:
        x, *others = self.first()

        class Module(torch.nn.Module):
            def forward(_, x: Tensor) -> tuple[Tensor, Tensor]:
                return self.op(x, *others)

        program = torch.export.export(Module(), (x,))
        assert_same_bits("exported", program.module()(x), self.op(x, *others))

    def test_inference_mode(self) -> None:
        with torch.inference_mode():
            found = self.op(*self.first())
        assert all(each.is_inference() for each in found)

    @every_dtype
    def test_meta_tensors(self, dtype: torch.dtype) -> None:
        for shape in self.meta_shapes:
            for args in self.calls(torch.randn(shape), dtype):
                for found, like in zip(self.op(*moved(args, "meta")), self.op(*args), strict=True):
                    assert found.device.type == "meta"
                    assert found.shape == like.shape and found.dtype == like.dtype

    def test_float64_is_rounded_to_float32_first(self) -> None:
        for args in self.calls(torch.randn(5, 40, dtype=torch.float64), torch.float8_e4m3fn):
            assert_same_bits("float64", self.op(*args), self.op(args[0].float(), *args[1:]))

    def test_refusals_are_in_the_callers_words(self) -> None:
        x, _, *others = self.first()
        name = self.op.name
        with pytest.raises(TypeError, match=rf"{name}: dtype is torch.int32; allowed are"):
            self.op(x, torch.int32, *others)
        with pytest.raises(TypeError, match=rf"{name}: x has dtype torch.int64"):
            self.op(x.long(), torch.int8, *others)
        with pytest.raises(TypeError, match="nonsense"):
            self.op(x, torch.int8, *others, nonsense=1)

    def test_says_why_it_does_not_take_cpu_tensors(self) -> None:
        reason = self.op.why_not(*self.first())["triton"]
        assert reason.startswith("runs on cuda") and reason.endswith("; the arguments are on cpu")
