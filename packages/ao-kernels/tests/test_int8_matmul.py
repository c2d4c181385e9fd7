"""int8_matmul: the reference against int64, and the kernels interpreted and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Forced
from torch import Tensor

from ao_kernels.ops import int8_matmul, quantize_rowwise_both

SHAPES = [(16, 16, 16), (48, 80, 32), (144, 272, 400), (5, 7, 9), (16, 33, 1500)]


def samples() -> Iterator[tuple[str, tuple[Tensor, ...], Tensor]]:
    """Name, arguments, and the product in float64, where sums are exact."""
    generator = torch.Generator().manual_seed(4)
    for M, N, K in SHAPES:
        a, b = (
            torch.randint(-127, 128, (R, K), dtype=torch.int8, generator=generator) for R in (M, N)
        )
        for one in (False, True):
            scale = torch.rand(() if one else (M, 1), generator=generator)
            b_scale = torch.rand(N, generator=generator)
            y = (a.double() @ b.double().T) * scale.double() * b_scale.double()
            yield f"{M}x{N}x{K}", (a, scale, b, b_scale), y


class Products:
    device = "cpu"
    bf16 = 2.0**-8

    def check(self, name: str, args: tuple[Any, ...], exact: Tensor) -> None:
        moved = (a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        y = int8_matmul(*moved).cpu()
        eps = {torch.float32: 2e-7, torch.bfloat16: self.bf16, torch.float16: 2.0**-11}[y.dtype]
        assert ((y.double() - exact).abs() <= exact.abs() * eps + 1e-30).all(), name

    def test_products(self) -> None:
        for name, args, exact in samples():
            self.check(name, (*args, None, torch.float32), exact)
            self.check(name, args, exact)

    def test_bias(self) -> None:
        for name, args, exact in samples():
            bias = torch.rand(exact.shape[1]).mul(2.0**40)  # no cancellation
            y = exact + bias.double()
            self.check(name, (*args, bias, torch.float32), y)

    def test_quantized_operands(self) -> None:
        x, w = torch.randn(40, 200), torch.randn(30, 200)
        a, a_scale, *_ = quantize_rowwise_both(x, torch.int8)
        b, b_scale, *_ = quantize_rowwise_both(w, torch.int8)
        args = (each.to(self.device) for each in (a, a_scale, b, b_scale))
        y = int8_matmul(*args, None, torch.float32).cpu()[:40, :30]
        assert (y - x @ w.T).norm() / (x @ w.T).norm() < 0.015


class TestOp(Products):
    def test_opcheck(self) -> None:
        for _, args, _ in samples():
            torch.library.opcheck(
                int8_matmul.overload, args, test_utils=["test_schema", "test_faketensor"]
            )

    def test_refusals_are_in_the_callers_words(self) -> None:
        a, b = torch.zeros(4, 8, dtype=torch.int8), torch.zeros(3, 8, dtype=torch.int8)
        scale = torch.ones(())
        with pytest.raises(TypeError, match=r"both operands must be matrices of torch.int8 codes"):
            int8_matmul(a.float(), scale, b, scale)
        with pytest.raises(ValueError, match=r"a_scale is \(3,\) torch.float32; codes of 4 rows"):
            int8_matmul(a, torch.ones(3), b, scale)
        with pytest.raises(ValueError, match="both must have K columns"):
            int8_matmul(a, scale, b[:, :5], scale)


@pytest.mark.interpreted
class TestInterpreted(Products, Forced):
    bf16 = 2.0**-7  # the interpreter cuts bits off


@pytest.mark.gpu
class TestOnGpu(Products):
    device = "cuda"

    def test_the_reference_is_not_taken(self) -> None:
        for _, args, _ in samples():
            assert int8_matmul.choice(*(a.cuda() for a in args)).kernel != "reference"
