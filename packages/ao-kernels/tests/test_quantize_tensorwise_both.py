"""quantize_tensorwise_both: the reference, and the Triton kernels interpreted and on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Both, BothBits, BothOnGpu, BothRest, Forced, assert_padded
from quantize_contract import GpuBits, RestOfTorch, every_dtype
from quantized_samples import (
    assert_same_bits,
    every_16_bit_value,
    halfway_values,
    matrices,
)
from torch import Tensor

from ao_kernels.ops import quantize_tensorwise, quantize_tensorwise_both

_SCALES = (1.0, 0.01, 3e30, 1e-40, -2.0, 0.0, torch.inf, torch.nan)


class Tensorwise(Both):
    op = quantize_tensorwise_both

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, None, False, "both"
        yield x, dtype, None, True, "both"
        yield x, dtype, torch.tensor(0.037), False, "both"

    def calls_of(self, x: Tensor, dtype: torch.dtype, outputs: str) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, None, False, outputs
        yield x, dtype, torch.tensor([0.037]), True, outputs


class GivenScales(Tensorwise):
    """Scales of every kind, in calls of the op."""

    @every_dtype
    def test_given_scales(self, dtype: torch.dtype) -> None:
        x = torch.cat((halfway_values(dtype), torch.tensor([0.0, -0.0, 1e38, -1e38])))
        values = torch.cat((x, torch.tensor([torch.nan, torch.inf, -torch.inf]), x))
        values = values[: len(values) // 24 * 24].view(24, -1)
        for value in _SCALES:
            given = torch.tensor([[value]])
            for x_dtype in (torch.float32, torch.bfloat16):
                x = values.to(x_dtype)
                self.check(f"{value} {x_dtype}", x, dtype, given, False, "both")


class TestOp(Tensorwise, BothRest, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    def test_is_quantize_tensorwise_in_both_directions(self) -> None:
        for name, x in matrices():
            for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
                codes, scale = quantize_tensorwise(x, dtype)
                found, transposed, found_scale = quantize_tensorwise_both(x, dtype)
                M, K = x.shape
                assert_same_bits(name, (found[:M, :K].contiguous(), found_scale), (codes, scale))
                assert_same_bits(name, (transposed[:K, :M].contiguous(),), (codes.T.contiguous(),))
                assert_padded(x, found, transposed)

    def test_a_given_scale_does_not_hide_inf(self) -> None:
        x = torch.tensor([[1000.0, -1000.0, torch.inf, -torch.inf, torch.nan, 2.0]])
        codes, transposed, scale = quantize_tensorwise_both(
            x, torch.float8_e4m3fn, torch.tensor(2.0)
        )
        assert codes[0, :2].float().tolist() == [448.0, -448.0] and scale == 2.0
        assert codes[0, 2:5].float().isnan().all() and codes[0, 5].float() == 1.0
        assert transposed[2:5, 0].float().isnan().all()

    def test_the_result_is_not_the_given_scale(self) -> None:
        given = torch.tensor(0.5)
        *_, scale = quantize_tensorwise_both(torch.randn(3, 4), torch.float8_e4m3fn, given)
        assert scale.data_ptr() != given.data_ptr() and scale == given

    def test_powers_of_two(self) -> None:
        for amax, expected in [
            (448.0, 1.0),
            (512.0, 2.0),
            (3.5, 2**-7),
            (3.0, 2**-7),
            (0, 2**-126),
        ]:
            x = torch.tensor([[amax, -amax / 4]])
            codes, _, scale = quantize_tensorwise_both(x, torch.float8_e4m3fn, None, True)
            assert scale == expected
            assert torch.equal(codes[:1, :2].float() * scale, x)

    def test_refused_scales(self) -> None:
        x = torch.randn(3, 4)
        for scale in (torch.ones(2), torch.ones((), dtype=torch.bfloat16)):
            with pytest.raises(ValueError, match="it must be one float32 element"):
                quantize_tensorwise_both(x, torch.float8_e4m3fn, scale)


def quotient_of_kernels(value: Tensor, step: Tensor, *, short: bool) -> Tensor:
    """The operations of `_any_quotient` of ao_kernels/triton/codes.py, each rounded to float32; the
    interpreter has no fused ones. Maxima and minima drop NaN, as they do on a GPU."""

    def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (a.double() * b.double() + c.double()).float()

    def bounded(q: Tensor) -> Tensor:
        return torch.where(q.isnan(), -65536.0, q.clamp(-65536, 65536))

    lift = 2.0**64 if step.abs() < 2.0**-64 else 2.0**-64 if step.abs() > 2.0**64 else 1.0
    divisor = step.abs() * lift
    value = value * (lift if step.signbit() else -lift)
    inverse = -1 / divisor
    divisor = torch.where(inverse == 0, 0.0, divisor)
    quotient = bounded(value * inverse)
    quotient = fused(fused(quotient, divisor, value), inverse, quotient)
    if not short:
        quotient = bounded(quotient)
        quotient = fused(fused(quotient, divisor, value), inverse, quotient)
    return quotient


@every_dtype
def test_quotients_by_any_scale(dtype: torch.dtype) -> None:
    """Codes of the products that kernels form are those of the divisions of the reference, for
    scales that nobody should give as well."""
    if dtype == torch.int8:
        return  # multiplies by the reciprocal everywhere
    generator = torch.Generator().manual_seed(0)
    odd = [*_SCALES, -0.0, 1.0, 2.0**-126, 2.0**-149, 2.0**-64, 2.0**64, 2.0**127, 3.4e38, -1e-38]
    sizes = torch.exp2(torch.rand(60, generator=generator) * 250 - 125)
    steps = torch.cat((torch.tensor(odd), torch.randn(60, generator=generator) * sizes))
    high = torch.finfo(dtype).max

    def codes(quotient: Tensor) -> Tensor:
        found = quotient.clamp(-high, high).to(dtype)
        return torch.where(found.float().isnan(), 255, found.view(torch.uint8).int())

    short = torch.cat([every_16_bit_value(d).float() for d in (torch.bfloat16, torch.float16)])
    large = torch.tensor([3e38, -3e38, torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    for step in steps:
        beside = (halfway_values(dtype) * step).view(torch.int32)
        shifted = [(beside + i).view(torch.float32) for i in (-2, -1, 0, 1, 2)]
        for values, is_short in ((short, True), (torch.cat((*shifted, large)), False)):
            found = codes(quotient_of_kernels(values, step, short=is_short))
            wrong = found != codes(values / step)
            assert not wrong.any(), (step, values[wrong][:4])


@pytest.mark.interpreted
class TestInterpreted(GivenScales, BothBits, Forced):
    pass


@pytest.mark.gpu
class TestOnGpu(GivenScales, BothOnGpu, GpuBits):
    pass
