"""quantize_mx: the reference against the specification, and the Triton kernels interpreted and on a
GPU."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import SHAPES, Both, BothOnGpu, BothRest, Forced, assert_padded
from quantize_contract import RestOfTorch, moved
from quantized_samples import assert_same_bits, every_16_bit_value, halfway_values, matrices
from torch import Tensor

from ao_core.mx import dequantize_mx
from ao_kernels.ops import quantize_mx

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
EMAX = {torch.float8_e4m3fn: 8, torch.float8_e5m2: 15}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Mx(Both):
    op = quantize_mx

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype if dtype in DTYPES else torch.float8_e5m2, "both"


class TestOp(Mx, BothRest, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    test_opcheck = None  # of int8 too; below without
    test_refusals_are_in_the_callers_words = None  # of int8

    @every_dtype
    def test_scales_are_those_of_the_specification(self, dtype: torch.dtype) -> None:
        """By the logarithm in float64, block by block."""
        values = every_16_bit_value(torch.bfloat16)
        finite = values[values.isfinite()]
        x = finite[: len(finite) // 64 * 64].view(-1, 64)
        _, scale, *_ = quantize_mx(x, dtype)
        for row in range(0, x.shape[0], 7):
            for block in range(2):
                amax = float(x[row, block * 32 : block * 32 + 32].abs().max())
                e = -127 if amax == 0 else math.floor(math.log2(amax)) - EMAX[dtype]
                assert int(scale.view(torch.uint8)[row, block]) == min(max(e, -127), 127) + 127

    @every_dtype
    def test_codes_are_rounded_quotients(self, dtype: torch.dtype) -> None:
        """Every midpoint and its neighbours, of several scales, against the float64 quotient."""
        values = halfway_values(dtype).abs()
        for e in (-100, -9, 0, 30):
            x = torch.nn.functional.pad(values[:, None], (0, 31)) * 2.0**e
            x[:, 31] = 2.0 ** (EMAX[dtype] + e)  # the scale is 2**e unless the value is larger
            codes, scale, *_ = quantize_mx(x, dtype)
            assert (scale[: len(x), 0].float() == 2.0**e).all()
            high = torch.finfo(dtype).max
            wanted = (x[:, :1].double() / 2.0**e).clamp(max=high).to(torch.float32).to(dtype)
            assert_same_bits(f"{e}", (codes[: len(x), :1].contiguous(),), (wanted,))

    @every_dtype
    def test_the_largest_elements_saturate(self, dtype: torch.dtype) -> None:
        high = torch.finfo(dtype).max
        x = torch.full((1, 32), 1.999 * 2.0 ** EMAX[dtype])
        codes, scale, *_ = quantize_mx(x, dtype)
        assert scale[0, 0].float() == 1 and (codes[0].float() == high).all()

    @every_dtype
    def test_both_directions(self, dtype: torch.dtype) -> None:
        for name, x in matrices():
            codes, _, transposed, scale_t = quantize_mx(x, dtype)
            assert_padded(x, codes, transposed)
            rows = quantize_mx(x.T, dtype, "rows")[:2]
            assert_same_bits(name, (transposed, scale_t), rows)

    @every_dtype
    def test_dequantized_is_close(self, dtype: torch.dtype) -> None:
        x = torch.randn(64, 320)
        codes, scale, *_ = quantize_mx(x, dtype)
        error = (dequantize_mx(codes, scale) - x).norm() / x.norm()
        assert error < (0.04 if dtype == torch.float8_e4m3fn else 0.07)

    def test_zeros_nan_and_inf(self) -> None:
        for value in (torch.nan, torch.inf, -torch.inf):
            x = torch.zeros(1, 96)
            x[0, 40] = value
            codes, scale, *_ = quantize_mx(x, torch.float8_e4m3fn)
            assert scale.view(torch.uint8)[0].tolist() == [0, 255, 0]
            assert codes[0, 32:64].float().isnan().all()
            assert (codes[0, :32].float() == 0).all() and (codes[0, 64:].float() == 0).all()

    @every_dtype
    def test_opcheck_float8(self, dtype: torch.dtype) -> None:
        for shape in [(3, 40), (2, 3, 40)]:
            torch.library.opcheck(
                quantize_mx.overload,
                (torch.randn(shape), dtype),
                test_utils=["test_schema", "test_faketensor"],
            )

    def test_refused_dtypes(self) -> None:
        with pytest.raises(TypeError, match=r"quantize_mx: dtype is torch.int8; it must be"):
            quantize_mx(torch.randn(3, 4), torch.int8)


class MxBits(Mx):
    """``op`` on ``device`` against the reference on the CPU."""

    device = "cpu"

    def check(self, name: str, *args: Any) -> None:
        found = self.op(*moved(args, self.device))
        assert_same_bits(name, found, self.op.reference(*args))

    @every_dtype
    def test_matrices(self, dtype: torch.dtype) -> None:
        for name, x in list(matrices())[18:]:
            self.check(name, x, dtype, "both")

    @every_dtype
    def test_shapes(self, dtype: torch.dtype) -> None:
        for shape in [*SHAPES, (0, 5), (5, 0), (2, 40, 70)]:
            x = torch.randn(shape).bfloat16()
            for outputs in ("both", "rows", "columns"):
                self.check(f"{shape} {outputs}", x, dtype, outputs)

    @every_dtype
    def test_every_16_bit_value(self, dtype: torch.dtype) -> None:
        for x_dtype in (torch.bfloat16, torch.float16):
            values = every_16_bit_value(x_dtype)
            finite = values[values.isfinite()].sort().values
            self.check(f"{x_dtype}", finite[: len(finite) // 64 * 64].view(-1, 64), dtype, "both")
            self.check(f"odd {x_dtype}", values[~values.isfinite()][::60, None], dtype, "both")

    @every_dtype
    def test_every_boundary_and_scale(self, dtype: torch.dtype) -> None:
        values = halfway_values(dtype)
        x = values[None] * (2.0 ** torch.arange(-140, 110, 9, dtype=torch.float64))[:, None].float()
        self.check("boundaries", x, dtype, "both")


@pytest.mark.interpreted
class TestInterpreted(MxBits, Forced):
    pass


@pytest.mark.gpu
class TestOnGpu(MxBits):
    device = "cuda"

    @every_dtype
    def test_large_shapes(self, dtype: torch.dtype) -> None:
        for x in BothOnGpu.large(self):
            self.check(f"{tuple(x.shape)}", x, dtype, "both")
