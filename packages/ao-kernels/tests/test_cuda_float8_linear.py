"""float8_linear in CUDA, on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_contract import CudaLinear
from float8_samples import (
    CUDA_SHAPES,
    WHOLE,
    float8_call,
    large_float8,
    magnitude_float8,
    sample_float8,
)
from gpu_contract import on_gpu
from torch import Tensor

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_linear

KINDS = pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.gpu
class TestOnGpu(CudaLinear):
    op = float8_linear
    group_name = "block_k"
    refuses_many_tokens = "float16; the CUDA kernel of more than 16 tokens takes bfloat16"

    def call(self, M: int, N: int, K: int, group_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
        return float8_call(M, N, K, 1, group_size, dtype, bias=torch.float32)

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, *args in (*sample_float8(dtype, CUDA_SHAPES), *sample_float8(dtype)):
            yield Sample(name, tuple(args))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return magnitude_float8(*args)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, args in large_float8(dtype):
            yield Sample(name, args)
        for M, N, K, *block in [
            (1, 14336, 4096, 128, 128),
            (16, 14336, 4096, 1, WHOLE),
            (8, 2000, 14336, 128, 128),
            (12, 4099, 4128, 5, 32),
            (2000, 1000, 4104, 128, 128),
            (4096, 1000, 4128, 128, 128),
        ]:
            call = float8_call(M, N, K, *block, dtype, kind=torch.float8_e5m2)
            yield Sample(f"{M}x{N}x{K} e5m2 in blocks of {block} {dtype}", call)

    @KINDS
    def test_every_code_in_every_place(self, kind: torch.dtype) -> None:
        codes = ((torch.arange(256)[None] + torch.arange(256)[:, None]) % 256).to(torch.uint8)
        codes = codes.view(kind)
        codes = torch.where(codes.float().isfinite(), codes.float(), 0.0)
        scale, stored = torch.ones(1, 1).cuda(), codes.to(kind).cuda()
        for dtype in DTYPES:
            rows = torch.eye(256, dtype=dtype, device="cuda").split(16)
            y = torch.cat([float8_linear(each, stored, scale, 256, 256) for each in rows])
            assert torch.equal(y.cpu(), codes.T.to(dtype))
            assert torch.equal(float8_linear(torch.cat(rows), stored, scale, 256, 256), y)

    @KINDS
    @pytest.mark.parametrize("M", [1, 16, 40, 300])
    def test_codes_that_are_not_finite(self, kind: torch.dtype, M: int) -> None:
        """Each makes of its row what it is, and nothing of other rows."""
        everything = torch.arange(256, dtype=torch.uint8).view(kind).float()
        special = everything[~everything.isfinite()]
        for dtype in DTYPES:
            for block_k in (128, 256):
                codes = torch.zeros(40, 256)
                expected = torch.zeros(40)
                for i, value in enumerate(special):
                    codes[5 * i + 1, 36 * i] = expected[5 * i + 1] = value
                scale = torch.ones(40, 256 // block_k)
                call = on_gpu((torch.ones(M, 256, dtype=dtype), codes.to(kind), scale, 1, block_k))
                if M <= 16 or dtype == torch.bfloat16:
                    assert "cuda" not in float8_linear.why_not(*call)
                y = float8_linear(*call).cpu().float()
                assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0).expand(M, -1))

    def test_nan_scales_stay_in_their_block(self) -> None:
        for M in (3, 16):
            x, codes, scale, *others = float8_call(M, 96, 256, 40, 128, torch.bfloat16)
            scale[1, 1] = torch.nan
            y = float8_linear(*on_gpu((x, codes, scale, *others))).cpu()
            assert y[:, 40:80].isnan().all()
            assert y[:, :40].isfinite().all() and y[:, 80:].isfinite().all()

    @KINDS
    @pytest.mark.parametrize("block", [(1, WHOLE), (WHOLE, WHOLE), (128, 128), (7, 256)])
    def test_many_tokens_in_blocks(self, kind: torch.dtype, block: tuple[int, int]) -> None:
        for M, N, K in [(17, 300, 1024), (50, 129, 416), (100, 2000, 4096), (700, 1001, 2080)]:
            call = float8_call(M, N, K, *block, torch.bfloat16, kind=kind, bias=torch.bfloat16)
            args = on_gpu(call)
            assert "cuda" not in float8_linear.why_not(*args)
            self._match(args)

    @KINDS
    @pytest.mark.parametrize("block", [(1, WHOLE), (WHOLE, WHOLE), (128, 128), (7, 40)])
    def test_dequantized(self, kind: torch.dtype, block: tuple[int, int]) -> None:
        """The weight that a library multiplies is what the reference says, rounded once."""
        for N, K in [(300, 1000), (33, 4099), (257, 8), (1, 77)]:
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                call = float8_call(600, N, K, *block, dtype, kind=kind)
                x = torch.eye(K, dtype=dtype)[:600] if K >= 600 else torch.eye(600, K).to(dtype)
                args = on_gpu((x, *call[1:]))
                float8_linear.why_not(*args)  # loads the kernels
                kernel = next(k for k in float8_linear.kernels if k.name == "cuda:dequantize")
                y = kernel.run(*args).cpu()
                exact = float8_linear.reference(x.double(), *call[1:])
                assert torch.equal(y, exact.float().to(dtype)), (N, K, dtype)
