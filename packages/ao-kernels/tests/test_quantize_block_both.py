"""quantize_block_both: the reference, the Triton kernels interpreted, compiled for absent GPUs, and
on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from both_contract import Both, BothBits, BothOnGpu, BothRest, Forced, assert_padded
from quantize_contract import GpuBits, RestOfTorch, every_dtype
from quantized_samples import assert_same_bits, matrices
from torch import Tensor

from ao_kernels.ops import quantize_block, quantize_block_both


class Block(Both):
    op = quantize_block_both

    def calls(self, x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, 1, 128, False, "both"
        yield x, dtype, 128, 128, True, "both"

    def calls_of(self, x: Tensor, dtype: torch.dtype, outputs: str) -> Iterator[tuple[Any, ...]]:
        yield x, dtype, 1, 128, True, outputs
        yield x, dtype, 128, 128, False, outputs


class TestOp(Block, BothRest, RestOfTorch):
    """What any machine runs: on the CPU the op is its reference."""

    @every_dtype
    @pytest.mark.parametrize("rows", [1, 128])
    def test_is_quantize_block_of_both_directions(self, rows: int, dtype: torch.dtype) -> None:
        for name, x in [*matrices(), ("blocks", torch.randn(300, 260))]:
            codes, scale, transposed, scale_t = quantize_block_both(x, dtype, rows, 128)
            for way, found in ((x, (codes, scale)), (x.T, (transposed, scale_t))):
                R, C = way.shape
                wanted, wanted_scale = quantize_block(way, dtype, rows, 128)
                part = found[1][:R] if rows == 1 else found[1]
                assert_same_bits(
                    name, (found[0][:R, :C].contiguous(), part), (wanted, wanted_scale)
                )
            assert_padded(x, codes, transposed)

    def test_scales_of_rows_lie_column_by_column(self) -> None:
        """As torch._scaled_mm wants them."""
        _, scale, _, scale_t = quantize_block_both(torch.randn(32, 300), torch.int8, 1, 128)
        assert scale.shape == (32, 3) and scale.stride() == (1, 32)
        assert scale_t.shape == (304, 1) and scale_t.stride(0) == 1

    def test_refused_blocks(self) -> None:
        for block in [(1, 64), (64, 128), (128, 1)]:
            with pytest.raises(ValueError, match="allowed are 1 x 128 and 128 x 128"):
                quantize_block_both(torch.randn(3, 4), torch.float8_e4m3fn, *block)


@pytest.mark.interpreted
class TestInterpreted(Block, BothBits, Forced):
    pass


@pytest.mark.gpu
class TestOnGpu(Block, BothOnGpu, GpuBits):
    pass


@pytest.mark.gpu
class TestTritonOnGpu(Forced, TestOnGpu):
    """Where the CUDA extension would come first."""
