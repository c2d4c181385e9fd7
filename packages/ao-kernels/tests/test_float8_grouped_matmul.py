"""quantize_grouped_both, float8_grouped_matmul and float8_grouped_wgrad: the references expert by
expert, and the kernels interpreted and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Forced
from matmul_samples import E4M3, E5M2
from quantize_contract import moved
from quantized_samples import assert_same_bits
from torch import Tensor

from ao_kernels.ops import (
    float8_grouped_matmul,
    float8_grouped_wgrad,
    quantize_grouped_both,
    quantize_rowwise_both,
)

# M, N, K and the ends of the experts' tokens: none, one, many, and rows of no expert
CASES: list[tuple[int, int, int, list[int]]] = [
    (64, 32, 48, [64]),
    (100, 40, 72, [0, 1, 17, 17, 100]),
    (110, 144, 144, [33, 40, 97, 97]),
    (16, 16, 16, [0, 0, 0]),
    (140, 48, 96, [70, 71, 140, 140, 140, 140, 140]),
]


def case(M: int, N: int, K: int, ends: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_MK, w_ENK, grad_MN and offsets."""
    generator = torch.Generator().manual_seed(M + N)
    x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
    w = torch.randn(len(ends), N, K, generator=generator)
    grad = torch.randn(M, N, generator=generator)
    return x.bfloat16(), w.bfloat16(), grad.bfloat16(), torch.tensor(ends, dtype=torch.int32)


def spans(ends: list[int]) -> Iterator[tuple[int, slice]]:
    start = 0
    for expert, end in enumerate(ends):
        yield expert, slice(start, end)
        start = end


class Products:
    device = "cpu"
    sum_eps = 1e-6
    bf16 = 2.0**-8
    cases = tuple(CASES)

    def call(self, op: Any, *args: Any) -> Any:
        y = op(*moved(args, self.device))
        return y.cpu() if isinstance(y, Tensor) else tuple(t.cpu() for t in y)

    def close(self, y: Tensor, a: Tensor, b: Tensor) -> None:
        """y = a @ b.T of float64 operands."""
        exact, size = a @ b.T, a.abs() @ b.abs().T
        eps = self.bf16 if y.dtype == torch.bfloat16 else 1e-7
        over = (y.double() - exact).abs() - size * self.sum_eps - exact.abs() * eps
        assert (over <= 1e-12).all(), float(over.max())

    @pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
    def test_quantized(self, dtype: torch.dtype) -> None:
        """Bit for bit the reference, whose experts are checked below."""
        for sizes in self.cases:
            x, *_, offsets = case(*sizes)
            for power_of_two, outputs in [(False, "both"), (True, "rows"), (True, "columns")]:
                others = () if outputs == "both" else (x.float(), x.T.contiguous().T)
                for each in others or (x,):
                    args = (each, dtype, offsets, power_of_two, outputs)
                    found = self.call(quantize_grouped_both, *args)
                    assert_same_bits(f"{sizes}", found, quantize_grouped_both.reference(*args))

    @pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
    @pytest.mark.parametrize("out_dtype", [None, torch.float32])
    def test_forward(self, dtype: torch.dtype, out_dtype: torch.dtype | None) -> None:
        for sizes in self.cases:
            x, w, _, offsets = case(*sizes)
            a, a_scale, *_ = quantize_grouped_both.reference(x, dtype, offsets)
            b, b_scale, *_ = quantize_rowwise_both.reference(w, E4M3)
            y = self.call(float8_grouped_matmul, a, a_scale, b, b_scale, offsets, out_dtype)
            assert y.dtype == (out_dtype or torch.bfloat16)
            left, right = a.double() * a_scale.double(), b.double() * b_scale.double()
            for expert, rows in spans(sizes[3]):
                self.close(y[rows], left[rows], right[expert])
            assert not y[sizes[3][-1] :].any()

    @pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
    @pytest.mark.parametrize("out_dtype", [None, torch.float32])
    def test_wgrad(self, dtype: torch.dtype, out_dtype: torch.dtype | None) -> None:
        for sizes in self.cases:
            x, _, grad, offsets = case(*sizes)
            *_, a, a_scale, ends = quantize_grouped_both.reference(grad, dtype, offsets)
            *_, b, b_scale, _ = quantize_grouped_both.reference(x, E4M3, offsets)
            y = self.call(float8_grouped_wgrad, a, a_scale, b, b_scale, ends, out_dtype)
            for expert, places in spans(ends.tolist()):
                left = a[:, places].double() * a_scale[expert][:, None].double()
                right = b[:, places].double() * b_scale[expert][:, None].double()
                self.close(y[expert], left, right)

    def test_nothing_to_multiply(self) -> None:
        offsets = torch.zeros(2, dtype=torch.int32)
        x = torch.randn(0, 32)
        a, a_scale, t, t_scale, ends = self.call(quantize_grouped_both, x, E4M3, offsets)
        assert a.shape == (0, 32) and t.shape == (32, 64) and ends.tolist() == [0, 0]
        b, b_scale, *_ = quantize_rowwise_both(torch.randn(2, 16, 32), E4M3)
        assert self.call(float8_grouped_matmul, a, a_scale, b, b_scale, offsets).shape == (0, 16)
        y = self.call(float8_grouped_wgrad, t, t_scale, t, t_scale, ends)
        assert y.shape == (2, 32, 32) and not y.any()


class TestOps(Products):
    """What any machine runs: on the CPU the ops are their references."""

    def test_tokens_are_quantized_expert_by_expert(self) -> None:
        for sizes in CASES:
            x, *_, offsets = case(*sizes)
            M, K, E = x.shape[0], x.shape[1], len(sizes[3])
            args = (x, E4M3, offsets)
            codes, scale, transposed, scale_t, ends = quantize_grouped_both(*args)
            rows = quantize_rowwise_both(x, E4M3, False, "rows")
            assert_same_bits("rows", (codes, scale), rows[:2])
            assert transposed.shape == (-(-K // 16) * 16, -(-M // 32) * 32 + 32 * E)
            start = 0
            for expert, tokens in spans(sizes[3]):
                *_, wanted, wanted_scale = quantize_rowwise_both(x[tokens], E4M3)
                end = int(ends[expert])
                n = wanted.shape[1]
                assert end % 32 == 0 and 0 <= end - start - n < 32
                assert not transposed[:, start + n : end].view(torch.uint8).any()
                assert_same_bits(
                    f"expert {expert}",
                    (transposed[:, start : start + n].contiguous(), scale_t[expert][:, None]),
                    (wanted, wanted_scale),
                )
                start = end
            assert not transposed[:, start:].view(torch.uint8).any()

    def test_a_loss_of_experts_has_the_gradients_of_bf16(self) -> None:
        """Forward, dgrad and wgrad put together, against float32: errors of float8 alone."""
        x, w, grad, offsets = (t.float() if t.is_floating_point() else t for t in case(*CASES[2]))
        a, a_scale, at, at_scale, ends = quantize_grouped_both(x, E4M3, offsets)
        _, _, gt, gt_scale, _ = quantize_grouped_both(grad, E5M2, offsets)
        b, b_scale, *_ = quantize_rowwise_both(w, E4M3)
        y = float8_grouped_matmul(a, a_scale, b, b_scale, offsets)
        wgrad = float8_grouped_wgrad(gt, gt_scale, at, at_scale, ends)
        for expert, rows in spans(CASES[2][3]):
            for found, wanted in [
                (y[rows], x[rows] @ w[expert].T),
                (wgrad[expert], grad[rows].T @ x[rows]),
            ]:
                error = (found.float() - wanted).norm() / wanted.norm().clamp(min=1e-9)
                assert error < 0.08

    def test_opcheck(self) -> None:
        x, w, grad, offsets = case(*CASES[1])
        quantized = quantize_grouped_both(x, E4M3, offsets)
        of_grad = quantize_grouped_both(grad, E5M2, offsets)
        b, b_scale, *_ = quantize_rowwise_both(w, E4M3)
        for op, args in [
            (quantize_grouped_both, (x, E4M3, offsets)),
            (quantize_grouped_both, (x, E4M3, offsets, False, "rows")),
            (float8_grouped_matmul, (*quantized[:2], b, b_scale, offsets)),
            (float8_grouped_wgrad, (*of_grad[2:4], *quantized[2:])),
        ]:
            torch.library.opcheck(op.overload, args, test_utils=["test_faketensor"])

    def test_refusals_are_in_the_callers_words(self) -> None:
        x, w, _, offsets = case(*CASES[1])
        a, a_scale, *_ = quantize_grouped_both(x, E4M3, offsets)
        b, b_scale, *_ = quantize_rowwise_both(w, E4M3)
        with pytest.raises(TypeError, match=r"offsets have dtype torch.int64; they must be"):
            quantize_grouped_both(x, E4M3, offsets.long())
        with pytest.raises(ValueError, match=r"offsets have shape \(4,\); with 5 experts"):
            float8_grouped_matmul(a, a_scale, b, b_scale, offsets[1:])
        with pytest.raises(TypeError, match=r"b has dtype torch.bfloat16; both operands must be"):
            float8_grouped_matmul(a, a_scale, b.bfloat16(), b_scale, offsets)
        with pytest.raises(ValueError, match=r"they must be \(M, K\) and \(E, N, K\)"):
            float8_grouped_matmul(a, a_scale, b[0], b_scale, offsets)
        with pytest.raises(ValueError, match=r"they must be \(N, P\) and \(K, P\)"):
            float8_grouped_wgrad(a, a_scale, a[:, 1:], a_scale, offsets)


@pytest.mark.interpreted
class TestInterpreted(Products, Forced):
    bf16 = 2.0**-7  # the interpreter cuts bits off
    cases = ((40, 24, 40, [0, 1, 17, 17, 36]), (36, 16, 144, [20, 33]), CASES[3])

    def test_the_library_reads_no_rows_behind_the_tokens(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ends behind the tokens are bounded for torch._scaled_grouped_mm, whose place a product
        takes here that leaves rows of no expert undefined; they become zeros."""
        from ao_kernels.triton import float8_grouped_matmul as kernels

        reference = float8_grouped_matmul.reference

        def library(a: Tensor, b: Tensor, *scales: Tensor, offs: Tensor, **options: Any) -> Tensor:
            assert int(offs[-1]) <= len(a) and options["use_fast_accum"]
            y = reference(a, scales[0], b.mT, scales[1], offs)
            y[int(offs[-1]) :] = torch.nan
            return y

        monkeypatch.setattr(torch, "_scaled_grouped_mm", library)
        x, w, _, _ = case(40, 32, 48, [0, 0, 0])
        a, a_scale = quantize_rowwise_both(x, E4M3, False, "rows")[:2]
        b, b_scale = quantize_rowwise_both(w.flatten(0, 1), E4M3, False, "rows")[:2]
        b, b_scale = b[:96, :48].reshape(3, 32, 48), b_scale.view(3, 32, 1)
        a = a[:40, :48].contiguous()
        for ends in ([9, 9, 33], [20, 41, 60]):
            offsets = torch.tensor(ends, dtype=torch.int32)
            y = kernels._run_library(a, a_scale, b, b_scale, offsets, None, True)
            bounded = offsets.clamp(max=40)
            assert torch.equal(y, reference(a, a_scale, b, b_scale, bounded))


@pytest.mark.gpu
class TestOnGpu(Products):
    """The matrix units keep about 14 bits of sums of 128 products."""

    device = "cuda"
    sum_eps = 2.0**-12
