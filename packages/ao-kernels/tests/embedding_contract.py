"""What both embedding ops must do: bits of the reference in every dtype, on every instruction
set."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_samples import isa_variants
from torch import Tensor

from ao_core.testing.op_contract import OpContract


class EmbeddingContract(OpContract):
    has_gradient = False
    rows_are_tokens = False
    variants = staticmethod(isa_variants)

    def expected(self, args: tuple[Any, ...]) -> Tensor:
        return self.op.reference(*args).double()

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return torch.zeros_like(self.expected(args))

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        return torch.zeros_like(expected)  # the same bits

    @pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=["i32", "i64"])
    def test_index_dtypes_and_shapes(self, index_dtype: torch.dtype) -> None:
        _indices, *others = self._first(torch.bfloat16)
        n_rows = others[0].shape[0]
        cases: list[Tensor] = [
            torch.tensor(n_rows - 1, dtype=index_dtype),
            torch.arange(n_rows, dtype=index_dtype),
            torch.randint(n_rows, (3, 0, 2), dtype=index_dtype),
            torch.randint(n_rows, (500, 7), dtype=index_dtype),
            torch.randint(n_rows, (4, 6), dtype=index_dtype).T,
        ]
        for case in cases:
            for label, rows in self._results((case, *others)):
                assert rows.shape[:-1] == case.shape, label
                assert torch.equal(rows, self.op.reference(case, *others)), label

    @pytest.mark.parametrize("wrong", [-1, 10**6, -(2**31), 2**31 - 1])
    def test_indices_outside_the_table_are_refused(self, wrong: int) -> None:
        _indices, *others = self._first(torch.float32)
        for dtype in (torch.int32, torch.int64):
            bad = torch.tensor([0, wrong], dtype=dtype)
            for call in self._calls((bad, *others)):
                with pytest.raises(IndexError):
                    call()

    def test_refusals(self) -> None:
        indices, *others = self._first(torch.float32)
        with pytest.raises(TypeError, match="int32 or int64"):
            self.op(indices.float(), *others)
        with pytest.raises(TypeError, match="dtype is"):
            self.op(indices, *others[:-1], torch.int32)

    def test_float64_runs_the_reference_and_says_so(self) -> None:
        *args, _ = self._first(torch.float32)
        assert torch.equal(self.op(*args, torch.float64), self.op(*args, torch.float32).double())
        assert "float64" in self.op.why_not(*args, torch.float64)["cpu"]

    def _calls(self, args: tuple[Any, ...]) -> Iterator[Any]:
        for _, call in self._implementations(args):
            yield call
