"""quantize_block: the reference, the Triton kernel interpreted, compiled for absent GPUs, and on a
GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantize_contract import Bits, GpuBits, InterpretedBits, RestOfTorch, every_dtype
from quantized_samples import assert_same_bits
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches

from ao_kernels.ops import quantize_block, quantize_rowwise, quantize_tensorwise


class Block:
    op = quantize_block
    blocks = ((1, 128), (4, 3), (16, 16))

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for rows, cols in self.blocks:
            yield x, dtype, rows, cols


class TestOp(Block, Bits, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    @every_dtype
    def test_blocks_of_a_row_and_of_everything(self, dtype: torch.dtype) -> None:
        x = torch.randn(6, 40)
        assert_same_bits("rows", quantize_block(x, dtype, 1, 40), quantize_rowwise(x, dtype))
        codes, scale = quantize_tensorwise(x, dtype)
        whole = (codes, scale.view(1, 1))
        assert_same_bits("all", quantize_block(x, dtype, 6, 40), whole)
        assert_same_bits("more", quantize_block(x, dtype, 128, 128), whole)

    @every_dtype
    def test_each_block_is_alone(self, dtype: torch.dtype) -> None:
        x = torch.randn(2, 7, 10)
        codes, scale = quantize_block(x, dtype, 3, 4)
        assert scale.shape == (2, 3, 3)
        for e, r, g in [(0, 0, 0), (1, 2, 2), (1, 0, 2), (0, 2, 1)]:
            at = (e, slice(3 * r, 3 * r + 3), slice(4 * g, 4 * g + 4))
            alone, its_scale = quantize_tensorwise(x[at], dtype)
            assert torch.equal(codes[at].float(), alone.float()) and scale[e, r, g] == its_scale

    def test_refused_blocks(self) -> None:
        with pytest.raises(ValueError, match=r"x has shape \(8,\); blocks have two dimensions"):
            quantize_block(torch.randn(8), torch.int8, 1, 4)
        with pytest.raises(ValueError, match="blocks of 0 x 4; both must be at least 1"):
            quantize_block(torch.randn(8, 8), torch.int8, 0, 4)


@pytest.mark.interpreted
class TestInterpreted(Block, InterpretedBits):
    blocks = ((1, 128), (16, 32))
    test_every_16_bit_value = None  # rounds as rows are rounded, whose test has them
    test_values_beside_every_rounding_boundary = None

    @every_dtype
    def test_large_blocks(self, dtype: torch.dtype) -> None:
        self.check("whole", torch.randn(128, 256).bfloat16(), dtype, 128, 128)
        self.check("ends", torch.randn(2, 130, 150), dtype, 128, 128)

    def test_blocks_that_do_not_fit(self) -> None:
        args = (torch.randn(4, 8), torch.int8, 256, 100)
        reason = quantize_block.why_not(*args)["triton"]
        assert reason.startswith("blocks of 256 x 100") and "32768 elements" in reason


@pytest.mark.gpu
class TestOnGpu(Block, GpuBits):
    blocks = ((1, 128), (128, 128), (4, 3))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_for(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs what the compiler refuses: every kind of launch is compiled here."""
    dtypes = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
    blocks = ((1, 128), (128, 128), (5, 7))
    calls = [(torch.randn(256, 200).bfloat16(), d, *b) for d in dtypes for b in blocks]
    calls += [(torch.randn(256, 256), dtypes[0], *b) for b in blocks]
    launches = list(compiled_launches("quantize_block", calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == {"_quantize_blocks"}
    for launch in launches:
        assert launch.shared_bytes <= 4 << 10, "a block goes through shared memory"
        assert not launch.inexact_arithmetic()
