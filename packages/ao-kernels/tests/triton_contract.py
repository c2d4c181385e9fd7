"""What is checked of every Triton linear, in the interpreter and on a GPU.

The tests of an op combine its OpContract (samples and magnitude) with one of the classes below.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels import force


class Interpreted(OpContract):
    """OpContract with the Triton kernel forced; runs in the child process of conftest.py."""

    pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy
    test_calls_from_four_threads = None  # the interpreter changes triton.language as it runs
    test_bits_repeat_on_any_number_of_threads = None  # it runs one program after the other
    test_gradients_match_the_reference = None  # backward runs no Triton kernel; OnGpu tests it
    test_meta_tensors = None  # have no kernel that could be forced

    @pytest.fixture(autouse=True)
    def _only_triton(self) -> Iterator[None]:
        before = force("triton")
        self.op.why_not(*self._first(torch.bfloat16))  # loads the kernel, so that tracing finds it
        yield
        force(before)

    def _implementations(self, args: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        yield "triton", lambda: self.op(*args)

    def test_the_kernel_is_there(self) -> None:
        args = self._first(torch.bfloat16)
        assert "triton" in [kernel.name for kernel in self.op.kernels]
        assert "triton" not in self.op.why_not(*args)

    def test_what_it_does_not_take(self) -> None:
        x, *others = self._first(torch.float32)
        with pytest.raises(RuntimeError, match=r"AO_KERNELS=triton is set.*float64"):
            self.op(x.double(), *others)


class OnGpu(OpContract):
    """OpContract on CUDA tensors, and what only a GPU shows: graphs, Inductor, size."""

    test_calls_after_fork = None  # CUDA does not survive a fork

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        """Calls of a size that models have, on the CPU."""
        raise NotImplementedError

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        raise NotImplementedError

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for sample in self.cpu_samples(dtype):
            yield Sample(sample.name, on_gpu(sample.args))

    def test_the_kernel_is_taken(self) -> None:
        assert "triton" not in self.op.why_not(*self._first(torch.bfloat16))
        before = force("triton")
        try:
            args = self._first(torch.bfloat16)
            forced = self.op(*args)
        finally:
            force(before)
        assert torch.equal(forced, self.op(*args))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_large_shapes(self, dtype: torch.dtype) -> None:
        for sample in self.large(dtype):
            args = on_gpu(sample.args)
            expected = self.expected(args)
            excess = (self.op(*args).double() - expected).abs() - self.bound(args, expected)
            assert not (excess > 0).any() and not excess.isnan().any(), (
                f"{sample.name}: {excess.max()}"
            )

    def test_cpu_and_gpu_agree(self) -> None:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for sample in self.cpu_samples(dtype):
                here, there = self.op(*sample.args), self.op(*on_gpu(sample.args)).cpu()
                expected = self.expected(sample.args)
                apart = (here.double() - there.double()).abs()
                assert (apart <= 2 * self.bound(sample.args, expected)).all(), sample.name

    def test_graphs_replay_on_new_data(self) -> None:
        for sample in self.samples(torch.bfloat16):
            x, *others = sample.args
            fixed = x.clone()
            self.op(fixed, *others)  # compiles
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = self.op(fixed, *others)
            for _ in range(3):
                fresh = torch.randn_like(x)
                fixed.copy_(fresh)
                y.fill_(float("nan"))
                graph.replay()
                assert torch.equal(y, self.op(fresh, *others)), sample.name

    @pytest.mark.filterwarnings("ignore:TensorFloat32")  # Inductor's advice to every program
    def test_inductor(self) -> None:
        x, *others = self._first(torch.bfloat16)
        torch.compiler.reset()
        compiled = torch.compile(lambda x: torch.relu(self.op(x, *others)), fullgraph=True)
        assert torch.equal(compiled(x), torch.relu(self.op(x, *others)))

    def test_arguments_on_two_devices(self) -> None:
        x, *others = next(self.cpu_samples(torch.bfloat16)).args
        assert "cuda:0 and cpu" in self.op.why_not(x.cuda(), *others)["triton"]
        with pytest.raises(RuntimeError, match="device"):
            self.op(x.cuda(), *others)


def on_gpu(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.cuda() if isinstance(a, Tensor) else a for a in args)
