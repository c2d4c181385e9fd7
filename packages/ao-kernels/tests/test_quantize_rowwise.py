"""quantize_rowwise: the reference, the Triton kernels interpreted, compiled for absent GPUs, and on
a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantize_contract import Bits, GpuBits, InterpretedBits, RestOfTorch, every_dtype
from quantized_samples import assert_same_bits, every_16_bit_value, matrices
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches

from ao_core.numerics import choose_float8_scale, quantize_float8, quantize_tokens
from ao_kernels.ops import quantize_rowwise


class Rowwise:
    op = quantize_rowwise

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype


class TestOp(Rowwise, Bits, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    def test_int8_is_quantize_tokens(self) -> None:
        for name, x in matrices():
            codes, scale, _ = quantize_tokens(x)
            assert_same_bits(name, quantize_rowwise(x, torch.int8), (codes, scale))

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
    def test_float8_is_quantize_float8(self, dtype: torch.dtype) -> None:
        for name, x in matrices():
            block = (1, x.shape[1])
            scale = choose_float8_scale(x, block=block, dtype=dtype)
            codes = quantize_float8(x, scale, block=block, dtype=dtype).contiguous()
            assert_same_bits(name, quantize_rowwise(x, dtype), (codes, scale))

    def test_one_token(self) -> None:
        x = torch.randn(40)
        codes, scale = quantize_rowwise(x, torch.float8_e4m3fn)
        assert codes.shape == (40,) and scale.shape == (1,)
        rows = quantize_rowwise(x[None], torch.float8_e4m3fn)
        assert_same_bits("one token", (codes[None], scale[None]), rows)


@pytest.mark.interpreted
class TestInterpreted(Rowwise, InterpretedBits):
    def test_long_rows(self) -> None:
        x = torch.randn(2, 16400)
        x[1, 16390] = 100.0
        for dtype in (torch.float8_e4m3fn, torch.int8):
            self.check("long", x.bfloat16(), dtype)

    def test_padding_is_zero(self) -> None:
        from ao_kernels.triton.quantize_rowwise import row_launch

        for K, padded in [(100, 128), (16390, 16400), (1, 32)]:
            x = torch.randn(3, K)
            codes = torch.full((3, padded), 99, dtype=torch.int8)
            scale = torch.empty(3)
            row_launch(x, torch.int8, padded=padded)(x, codes, scale)
            assert not codes[:, K:].any()
            expected = quantize_rowwise.reference(x, torch.int8)
            assert_same_bits(f"{K}", (codes[:, :K].contiguous(), scale[:, None]), expected)


@pytest.mark.gpu
class TestOnGpu(Rowwise, GpuBits):
    @every_dtype
    def test_every_16_bit_value_alone(self, dtype: torch.dtype) -> None:
        for x_dtype in (torch.bfloat16, torch.float16):
            self.check(str(x_dtype), every_16_bit_value(x_dtype)[:, None], dtype)

    def test_more_than_2_to_31_elements(self) -> None:
        """Rows behind the 2**31st element, in and out."""
        if torch.cuda.mem_get_info()[0] < 16 << 30:
            pytest.skip("needs 16 GiB of GPU memory")
        x = torch.zeros(2**19 + 8, 4100, dtype=torch.bfloat16, device="cuda")
        x[-8:] = torch.randn(8, 4100)
        codes, scale = quantize_rowwise(x, torch.float8_e4m3fn)
        expected = quantize_rowwise.reference(x[-8:].cpu(), torch.float8_e4m3fn)
        assert_same_bits("last rows", (codes[-8:], scale[-8:]), expected)
        assert not codes[:-8].view(torch.uint8).any()


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    dtypes = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
    calls = [(torch.randn(M, K).bfloat16(), d) for M, K in [(1, 4096), (2048, 200)] for d in dtypes]
    calls += [(torch.randn(2, K), d) for K in (1, 16384, 16385) for d in dtypes]
    launches = list(compiled_launches("quantize_rowwise", calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == {"_quantize_blocks", "_quantize_long_rows"}
    for launch in launches:
        assert launch.shared_bytes <= 1 << 10, "a row goes through shared memory"
        assert not launch.inexact_arithmetic()
    converting = [launch for launch in launches if "cvt.rn.satfinite.e" in launch.ptx]
    assert bool(converting) == (architecture >= 89)
    fused = [launch for launch in launches if "fma." in launch.ptx]
    assert 0 < len(fused) < len(launches), "of float8 alone, where a quotient is corrected"
