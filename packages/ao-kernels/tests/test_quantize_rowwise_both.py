"""quantize_rowwise_both: the reference, and the Triton kernels interpreted and on a GPU."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from both_contract import Both, BothBits, BothOnGpu, BothRest, Forced, assert_padded
from quantize_contract import GpuBits, RestOfTorch, every_dtype
from quantized_samples import assert_same_bits, matrices
from torch import Tensor

from ao_kernels.ops import quantize_rowwise, quantize_rowwise_both


class Rowwise(Both):
    op = quantize_rowwise_both
    shapes = ((2, 3, 40), (0, 8), (3, 0), (0, 0), (2, 0, 8), (0, 3, 8), (3, 17, 130))

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, False, "both"
        yield x, dtype, True, "both"

    def calls_of(self, x: Tensor, dtype: torch.dtype, outputs: str) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, True, outputs


class TestOp(Rowwise, BothRest, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    @every_dtype
    def test_is_quantize_rowwise_of_both_directions(self, dtype: torch.dtype) -> None:
        for name, x in matrices():
            codes, scale, transposed, scale_t = quantize_rowwise_both(x, dtype)
            for way, found in ((x, (codes, scale)), (x.T, (transposed, scale_t))):
                R, C = way.shape
                part = found[0][:R, :C].contiguous(), found[1][:R]
                assert_same_bits(name, part, quantize_rowwise(way, dtype))
            assert_padded(x, codes, transposed)
            tiny = torch.finfo(torch.float32).tiny
            assert (scale[x.shape[0] :] == tiny).all() and (scale_t[x.shape[1] :] == tiny).all()

    def test_experts_are_matrices_of_their_own(self) -> None:
        x = torch.randn(3, 20, 36)
        together = quantize_rowwise_both(x, torch.float8_e4m3fn)
        for e in range(3):
            alone = quantize_rowwise_both(x[e], torch.float8_e4m3fn)
            assert_same_bits(f"expert {e}", tuple(each[e] for each in together), alone)


def test_short_quotients() -> None:
    """One correction gives the code of the rounded quotient, for values of up to 11 bits.

    The kernels form q = v * y, y the rounded reciprocal of the scale s, and correct it once: q - y
    * (q * s - v), with two fused operations. That is within a unit of v / s, so only scales that
    put v / s within some units of a midpoint of codes, a number of up to 5 bits, matter.
    """

    def rounded(x: Fraction) -> Fraction:
        """To 24 bits, half to even."""
        e = math.frexp(x.numerator / x.denominator)[1] - 24
        unit = Fraction(2) ** e
        return round(x / unit) * unit  # of a Fraction: half to even

    for bits, each in ((8, 1), (11, 7)):  # of 11 bits all were tried once
        for mantissa in range(1 << (bits - 1), 1 << bits, each):
            v = Fraction(mantissa, 1 << (bits - 1))
            for midpoint in (Fraction(n, 16) for n in range(16, 32)):
                near = rounded(v / midpoint)
                unit = Fraction(2) ** (math.frexp(float(near))[1] - 24)
                for s in (near + away * unit for away in range(-3, 4)):
                    y = rounded(1 / s)
                    q = rounded(v * y)
                    corrected = rounded(q - y * rounded(q * s - v))
                    wanted = rounded(v / s)
                    assert (corrected > midpoint) == (wanted > midpoint), (v, s, midpoint)
                    assert (corrected < midpoint) == (wanted < midpoint), (v, s, midpoint)


@pytest.mark.parametrize("high", [127.0, 448.0, 57344.0])
def test_scales_by_products(high: float) -> None:
    """Kernels divide the largest magnitude by the largest code with a product and a correction: for
    every mantissa the rounded quotient. Exponents shift both, from the least scale on."""
    size = torch.arange(1 << 23, 1 << 24, dtype=torch.int64).double() * 2.0**-23
    part = torch.tensor(1.0 / high).double()  # rounded to float32
    step = (size * part).float().double()
    rest = size - step * high
    assert torch.equal(rest.float().double(), rest), "the remainder is exact"
    assert torch.equal((rest * part + step).float(), size.float() / high)


@pytest.mark.interpreted
class TestInterpreted(Rowwise, BothBits, Forced):
    pass


@pytest.mark.gpu
class TestOnGpu(Rowwise, BothOnGpu, GpuBits):
    pass


@pytest.mark.gpu
class TestTritonOnGpu(Forced, TestOnGpu):
    """Where the CUDA extension would come first."""
