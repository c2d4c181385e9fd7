"""intx_linear in CUDA, 1 to 8 bits, on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_contract import CudaLinear
from linear_samples import CUDA_SHAPES, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import intx_linear


@pytest.mark.gpu
class TestOnGpu(CudaLinear):
    op = intx_linear

    def call(
        self, M: int, N: int, K: int, group_size: int, dtype: torch.dtype, bits: int = 3
    ) -> tuple[Any, ...]:
        codes = torch.randint(0, 256, (N, -(-K // 8) * bits), dtype=torch.uint8)
        n_groups = -(-K // group_size)
        scale = (torch.rand(N, n_groups) / K**0.5).bfloat16()
        zeros = (2 ** (bits - 1) + torch.randn(N, n_groups)).bfloat16()
        return torch.randn(M, K).to(dtype), codes, scale, zeros, bits, group_size, torch.randn(N)

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in (3, 1, 2, 4, 5, 6, 7, 8):
            for name, x, codes, scale, zero, *others in sample_intx(bits, dtype, CUDA_SHAPES):
                yield Sample(name, (x, codes, scale, zero, bits, *others))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, bits, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, bits, group_size, bias)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for bits in range(1, 9):
            shapes = [(1, 4096, 4096, 128), (16, 2048, 4096, 32), (7, 1003, 8192, 8192)]
            for shape in shapes:
                args = self.call(*shape, dtype, bits)
                yield Sample(f"{bits} bits {shape} {dtype}", args)

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_every_code_in_every_place(self, bits: int) -> None:
        codes = torch.arange(256).repeat(2**bits, 1) + torch.arange(2**bits)[:, None]
        codes = (codes % 2**bits).to(torch.uint8)
        packed, scale = pack(codes, bits).cuda(), torch.ones(1, 1).cuda()
        for dtype in (torch.bfloat16, torch.float16):
            rows = torch.eye(256, dtype=dtype, device="cuda").split(16)
            calls = [intx_linear(each, packed, scale, None, bits, 256) for each in rows]
            expected = (codes.float().T - 2 ** (bits - 1)).to(dtype)
            assert torch.equal(torch.cat(calls).cpu(), expected)
