"""int8_linear in CUDA, on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_contract import CudaLinear
from gpu_contract import on_gpu
from linear_samples import CUDA_SHAPES, magnitude_int8, sample_int8
from torch import Tensor

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import int8_linear


@pytest.mark.gpu
class TestOnGpu(CudaLinear):
    op = int8_linear
    refuses_many_tokens = "float16; the CUDA kernel of more than 16 tokens takes bfloat16"

    def call(self, M: int, N: int, K: int, group_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
        codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
        scale = torch.rand(N, -(-K // group_size)) / K**0.5
        return torch.randn(M, K).to(dtype), codes, scale, group_size, torch.randn(N)

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, *args in (*sample_int8(dtype, CUDA_SHAPES), *sample_int8(dtype)):
            yield Sample(name, tuple(args))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_int8(*args)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096, 4096), (16, 14336, 4096, 4096), (8, 2048, 14336, 128)]
        for shape in [*shapes, (12, 4099, 4128, 32), (40, 1000, 5000, 200)]:
            yield Sample(f"{shape} {dtype}", self.call(*shape, dtype))

    def test_many_tokens_in_groups(self) -> None:
        """The op's own scales are float32: a group's must be bfloat16 for the kernel of many."""
        for M, N, K, group_size in [
            (17, 300, 1024, 128),
            (50, 129, 416, 32),
            (100, 2000, 4096, 64),
            (700, 1001, 2080, 256),
        ]:
            x, codes, scale, *others = self.call(M, N, K, group_size, torch.bfloat16)
            args = on_gpu((x, codes, scale.bfloat16(), *others))
            assert "cuda" not in int8_linear.why_not(*args)
            self._match(args)

    def test_every_code_in_every_place(self) -> None:
        codes = (torch.arange(256)[None] + torch.arange(256)[:, None]) % 256 - 128
        scale, packed = torch.ones(1, 1).cuda(), codes.to(torch.int8).cuda()
        for dtype in (torch.bfloat16, torch.float16):
            rows = torch.eye(256, dtype=dtype, device="cuda").split(16)
            y = torch.cat([int8_linear(each, packed, scale, 256) for each in rows])
            assert torch.equal(y.cpu(), codes.T.to(dtype))
            assert torch.equal(int8_linear(torch.cat(rows), packed, scale, 256), y)
