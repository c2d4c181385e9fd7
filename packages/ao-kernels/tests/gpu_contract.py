"""What is checked of every kernel of a linear on a GPU, whichever backend it belongs to.

The tests of an op combine its OpContract (samples and magnitude) with the class below.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels import force


class OnGpu(OpContract):
    """OpContract on CUDA tensors, and what only a GPU shows: graphs, Inductor, size.

    ``backend`` names the kernels that the tests are for. ``forced``: every call goes to them, also
    where another backend comes first; else an op chooses, and takes others where they take
    nothing.
    """

    backend: str
    forced: bool
    test_calls_after_fork = None  # CUDA does not survive a fork

    @pytest.fixture(autouse=True)
    def _only_one_backend(self) -> Iterator[None]:
        with forcing(self.backend if self.forced else None):
            yield

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        """Calls of a size that models have, on the CPU."""
        raise NotImplementedError

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        raise NotImplementedError

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for sample in self.cpu_samples(dtype):
            yield Sample(sample.name, on_gpu(sample.args))

    def _implementations(self, args: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        for label, call in super()._implementations(args):
            yield label, call
            # A kernel called by name leaves a plan, which the op would follow as its own choice.
            force(self.backend if self.forced else None)

    def test_the_kernel_is_taken(self) -> None:
        args = self._first(torch.bfloat16)
        assert self.backend not in self.op.why_not(*args)
        mine = [k for k in self.op.kernels if k.backend == self.backend]
        kernel = next(k for k in mine if k.supports(*args) is None)
        with forcing(self.backend):
            forced = self.op(*args)
        assert torch.equal(forced, kernel.run(*args))
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
                there = self.op(*on_gpu(sample.args)).cpu()
                with forcing(None):
                    here = self.op(*sample.args)
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
        with forcing(None):
            self.op(*self._first(torch.bfloat16))  # loads the kernels
            for kernel in self.op.kernels:
                if kernel.backend == self.backend:
                    assert "cuda:0 and cpu" in (kernel.supports(x.cuda(), *others) or "")
            with pytest.raises(RuntimeError, match="device"):
                self.op(x.cuda(), *others)

    def test_meta_tensors(self) -> None:
        with forcing(None):
            super().test_meta_tensors()


class WeightOnlyOnGpu(OnGpu):
    """OnGpu for weight-only linears, some of whose kernels of more than 16 tokens multiply weights
    that were rounded to the dtype of x: once, or twice where there are zeros."""

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        bound = super().bound(args, expected)
        x = args[0]
        if x.shape[-1] and x.numel() // x.shape[-1] > 16:
            bound = bound + torch.finfo(x.dtype).eps * self.magnitude(args)
        return bound


@contextlib.contextmanager
def forcing(backend: str | None) -> Iterator[None]:
    before = force(backend)
    try:
        yield
    finally:
        force(before)


def check_the_current_stream(op: Any, args: tuple[Any, ...]) -> None:
    """Asserts that a kernel waits for what its stream is doing; args are on the CPU."""
    x, *others = on_gpu(args)
    late, stream = torch.zeros_like(x), torch.cuda.Stream()
    expected = op(x, *others)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        y = op(late, *others)
    stream.synchronize()
    assert torch.equal(y, expected)


def on_gpu(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.cuda() if isinstance(a, Tensor) else a for a in args)
