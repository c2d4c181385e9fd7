"""What is checked of every Triton linear in the interpreter; gpu_contract.py is for GPUs.

The tests of an op combine its OpContract (samples and magnitude) with the class below.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_core.testing.op_contract import OpContract
from ao_kernels import force

one_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bf16"])


class Interpreted(OpContract):
    """OpContract with the Triton kernel forced; runs in the child process of conftest.py.

    Numbers are checked with every dtype of activations. The other tests take one: the interpreter
    is slow, and the same tests run with all of them on a GPU.
    """

    pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy
    test_calls_from_four_threads = None  # the interpreter changes triton.language as it runs
    test_bits_repeat_on_any_number_of_threads = None  # it runs one program after the other
    test_gradients_match_the_reference = None  # backward runs no Triton kernel; OnGpu tests it
    test_meta_tensors = None  # have no kernel that could be forced

    @one_dtype
    def test_zero_activations_give_what_the_reference_gives(self, dtype: torch.dtype) -> None:
        super().test_zero_activations_give_what_the_reference_gives(dtype)

    @one_dtype
    def test_activations_of_every_rank_and_stride(self, dtype: torch.dtype) -> None:
        super().test_activations_of_every_rank_and_stride(dtype)

    @one_dtype
    def test_non_finite_activations_stay_in_their_row(self, dtype: torch.dtype) -> None:
        super().test_non_finite_activations_stay_in_their_row(dtype)

    @one_dtype
    def test_strided_weights(self, dtype: torch.dtype) -> None:
        super().test_strided_weights(dtype)

    @one_dtype
    def test_opcheck(self, dtype: torch.dtype) -> None:
        super().test_opcheck(dtype)

    @one_dtype
    def test_compiles_in_one_graph(self, dtype: torch.dtype) -> None:
        super().test_compiles_in_one_graph(dtype)

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
