"""float8_matmul: the reference against float64, and the kernels interpreted and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Forced
from matmul_samples import E4M3, E5M2, LARGE, SHAPES, operand, products
from torch import Tensor

from ao_kernels.ops import float8_matmul

OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Products:
    """Against sums in float64: ``sum_eps`` is the error of a sum by its magnitudes."""

    device = "cpu"
    sum_eps = 1e-6
    bf16 = 2.0**-8
    shapes: Any = SHAPES

    def check(self, name: str, args: tuple[Any, ...], exact: Tensor, size: Tensor) -> None:
        moved = tuple(a.to(self.device) if isinstance(a, Tensor) else a for a in args)
        y = float8_matmul(*moved).cpu()
        assert y.dtype == (args[5] if len(args) > 5 and args[5] else torch.bfloat16), name
        eps = {torch.float32: 2.0**-24, torch.bfloat16: self.bf16, torch.float16: 2.0**-11}[y.dtype]
        subnormal = 2.0**-25 if y.dtype == torch.float16 else 1e-12
        bound = size * self.sum_eps + exact.abs() * eps + subnormal
        over = ((y.double() - exact).abs() / bound).max()
        assert over <= 1, f"{name}: {over:.3g} times the bound"

    def test_products(self) -> None:
        for name, args, exact, size in products(self.shapes):
            self.check(name, (*args, None, torch.float32), exact, size)

    def test_bias_and_dtypes(self) -> None:
        for name, args, exact, size in products([(48, 80, 32)]):
            if "('row', 'row')" not in name and "('1x128', '128x128')" not in name:
                continue
            bias = torch.randn(exact.shape[1])
            for dtype in OUT_DTYPES:
                self.check(f"{name} {dtype}", (*args, None, dtype), exact, size)
            for each in (bias, bias.bfloat16(), bias.half()):
                with_bias = exact + each.double(), size + each.double().abs()
                self.check(f"{name} {each.dtype}", (*args, each, None), *with_bias)
                self.check(f"{name} {each.dtype}", (*args, each, each.dtype), *with_bias)
            self.check(f"{name} fast", (*args, None, None, True), exact, size * 16)

    def test_strides(self) -> None:
        name, (a, a_scale, b, b_scale), exact, size = next(products())
        turned = a.T.contiguous().T, a_scale, b.T.contiguous().T, b_scale
        self.check(name, (*turned, None, torch.float32), exact, size)

    def test_nothing_to_multiply(self) -> None:
        for M, N, K in [(0, 16, 16), (16, 0, 16), (16, 16, 0), (0, 0, 0)]:
            x, w = torch.randn(M, K), torch.randn(N, K)
            bias = torch.randn(N)
            for kind in ("tensor", "row", "1x128", "mx"):
                args = (*operand(x, kind, E4M3), *operand(w, kind, E4M3))
                args = tuple(a.to(self.device) for a in args)
                y = float8_matmul(*args, bias.to(self.device), torch.float32)
                assert torch.equal(y.cpu(), bias.expand(M, N))

    def test_nan_reaches_its_row(self) -> None:
        for value in (torch.nan, torch.inf):
            x = torch.randn(32, 256)
            x[5, 7] = value
            for kind in ("row", "1x128", "mx"):
                args = (*operand(x, kind, E4M3), *operand(torch.randn(16, 256), kind, E4M3))
                y = float8_matmul(*(a.to(self.device) for a in args)).cpu()
                assert y[5].isnan().all() and y.isnan().sum() == 16
            args = (*operand(x, "tensor", E4M3), *operand(torch.randn(16, 256), "tensor", E4M3))
            assert float8_matmul(*(a.to(self.device) for a in args)).isnan().all()


class TestOp(Products):
    """What any machine runs: on the CPU the op is its reference."""

    def calls(self) -> Iterator[tuple[Any, ...]]:
        for _, args, *_ in products([(48, 80, 32)]):
            yield (*args, torch.randn(80), None, False)

    def test_opcheck(self) -> None:
        """Not the test of the schema, which multiplies float8 numbers."""
        for args in self.calls():
            torch.library.opcheck(float8_matmul.overload, args, test_utils=["test_faketensor"])

    def test_compiles_in_one_graph(self) -> None:
        for args in list(self.calls())[::8]:
            torch.compiler.reset()
            compiled = torch.compile(float8_matmul, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(*args), float8_matmul(*args))

    def test_refusals_are_in_the_callers_words(self) -> None:
        a, a_scale = operand(torch.randn(32, 48), "row", E4M3)
        b, b_scale = operand(torch.randn(16, 48), "row", E5M2)
        with pytest.raises(TypeError, match=r"b has dtype torch.float32; both operands must be"):
            float8_matmul(a, a_scale, b.float(), b_scale)
        with pytest.raises(ValueError, match=r"a_scale has shape \(31, 1\); codes of 32 x 48 take"):
            float8_matmul(a, a_scale[1:], b, b_scale)
        with pytest.raises(ValueError, match="both must have K columns"):
            float8_matmul(a, a_scale, b[:, :32], b_scale)
        with pytest.raises(TypeError, match=r"b_scale has dtype torch.float64"):
            float8_matmul(a, a_scale, b, b_scale.double())
        with pytest.raises(ValueError, match=r"bias is \(3,\).*it must be \(16,\)"):
            float8_matmul(a, a_scale, b, b_scale, torch.zeros(3))
        with pytest.raises(TypeError, match=r"out_dtype is torch.int8"):
            float8_matmul(a, a_scale, b, b_scale, None, torch.int8)
        mx = operand(torch.randn(16, 48), "mx", E4M3)
        with pytest.raises(TypeError, match="MX goes with MX only"):
            float8_matmul(a, a_scale, *mx)


@pytest.mark.interpreted
class TestInterpreted(Products, Forced):
    bf16 = 2.0**-7  # the interpreter cuts bits off
    shapes = ((16, 144, 144),)


@pytest.mark.gpu
class TestOnGpu(Products):
    """The matrix units keep about 14 bits of sums of 128 products."""

    device = "cuda"
    sum_eps = 2.0**-12
    shapes = (*SHAPES, *LARGE)

    def test_the_reference_is_not_taken(self) -> None:
        for name, args, *_ in products():
            args = tuple(a.cuda() for a in args)
            taken = float8_matmul.choice(*args).kernel
            assert taken != "reference", f"{name}: {float8_matmul.why_not(*args)}"

    def test_graphs_replay_on_new_data(self) -> None:
        for _, args, *_ in list(products())[::3]:
            a, *others = (each.cuda() for each in args)
            float8_matmul(a, *others)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = float8_matmul(a, *others)
            a.view(torch.uint8).copy_(a.view(torch.uint8).flip(0).clone())
            graph.replay()
            assert torch.equal(found, float8_matmul(a, *others))
