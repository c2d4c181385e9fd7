"""int4_linear in CUDA: on a GPU, and what is said where there is none."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cuda_contract import TILES, CudaLinear
from gpu_contract import on_gpu
from linear_samples import CUDA_SHAPES, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels import cuda
from ao_kernels.ops import int4_linear


def _call(
    M: int, N: int, K: int, group_size: int, dtype: torch.dtype, *, zero: bool = False
) -> tuple[Any, ...]:
    codes = torch.randint(0, 256, (N, -(-K // 8) * 4), dtype=torch.uint8)
    n_groups = -(-K // group_size)
    scale = (torch.rand(N, n_groups) / K**0.5).bfloat16()
    zeros = (8 + torch.randn(N, n_groups)).bfloat16() if zero else None
    return torch.randn(M, K).to(dtype), codes, scale, zeros, group_size, None


@pytest.mark.gpu
class TestOnGpu(CudaLinear):
    op = int4_linear
    refuses_many_tokens = "float16; the CUDA kernel of more than 16 tokens takes bfloat16"

    def call(self, M: int, N: int, K: int, group_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
        return _call(M, N, K, group_size, dtype, zero=True)

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for shapes in (CUDA_SHAPES, None):
            samples = sample_intx(4, dtype, shapes) if shapes else sample_intx(4, dtype)
            for name, *args in samples:
                yield Sample(name, tuple(args))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, 4, group_size, bias)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        shapes = [(1, 4096, 4096, 128), (16, 4096, 4096, 32), (8, 14336, 4096, 128)]
        shapes += [(16, 2048, 14336, 128), (5, 1000, 8192, 8192), (12, 4099, 4128, 64)]
        shapes += [(64, 4096, 4096, 128), (129, 4099, 4128, 64), (512, 14336, 4096, 4096)]
        for index, shape in enumerate(shapes):
            args = _call(*shape, dtype, zero=index % 2 == 1)
            yield Sample(f"{shape} {dtype}", args)

    def test_every_code_in_every_place(self) -> None:
        codes = torch.arange(16, dtype=torch.uint8).repeat(32)[None]
        scale, packed = torch.ones(1, 1).cuda(), pack(codes, 4).cuda()
        for dtype in (torch.bfloat16, torch.float16):
            rows = torch.eye(512, dtype=dtype, device="cuda").split(16)
            y = torch.cat([int4_linear(each, packed, scale, None, 512) for each in rows])
            assert torch.equal(y[:, 0].cpu(), (codes[0].float() - 8).to(dtype))

    @pytest.mark.parametrize("zero", [False, True])
    def test_scales_of_any_size_with_many_tokens(self, zero: bool) -> None:
        """Scales that the fused conversion takes stand beside some that it does not."""
        x, codes, scale, zeros, group_size, bias = _call(
            40, 64, 512, 128, torch.bfloat16, zero=zero
        )
        for low, high in ((-120, -100), (-40, 0), (-3, 3), (60, 80)):
            factors = torch.exp2(torch.randint(low, high, scale.shape).float()).bfloat16()
            args = (x, codes, scale * factors, zeros, group_size, bias)
            assert "cuda" not in self.op.why_not(*on_gpu(args))
            self._match(on_gpu(args))
        scale[3, 1], x[5, 7] = float("nan"), float("inf")
        y = int4_linear(*on_gpu((x, codes, scale, zeros, group_size, bias)))
        assert y[:, 3].isnan().all() and not y[5].isfinite().any()

    @pytest.mark.parametrize("shape", TILES, ids=str)
    def test_every_tile_without_zeros(self, shape: tuple[int, int, int, int]) -> None:
        args = on_gpu(_call(*shape, torch.bfloat16))
        self._match(args)
        assert torch.equal(self.op(*args), self.op(*args))

    @pytest.mark.parametrize("M", [12, 13, 16, 17, 25, 32])
    def test_some_tens_of_tokens_without_zeros(self, M: int) -> None:
        """weight_only_mid: K ends within a stage or a group, N within a tile; K split and not."""
        shapes = [
            (200, 1024, 128),
            (77, 416, 128),
            (5, 160, 128),
            (4099, 4128, 256),
            (96, 14336, 384),
        ]
        for index, (N, K, group_size) in enumerate(shapes):
            x, *others = on_gpu(_call(M, N, K, group_size, torch.bfloat16))
            others[-1] = torch.randn(N, device="cuda").bfloat16() if index % 2 else None
            self._match((x, *others))
            strided = torch.empty(M, K + 64, device="cuda", dtype=x.dtype)[:, :K].copy_(x)
            assert torch.equal(self.op(strided, *others), self.op(x, *others))
            scale = others[1]
            scale[0, 0], x[M - 1, 3] = float("nan"), float("inf")
            y = self.op(x, *others)
            assert y[:, 0].isnan().all() and not y[M - 1].isfinite().any()
            assert y[: M - 1, 1:].isfinite().all()

    def test_leaves_many_tokens_to_the_tables(self) -> None:
        """The first argument of the direct entry is the most tokens that it may take."""
        from ao_kernels import _cuda

        args = on_gpu(_call(40, 64, 512, 128, torch.bfloat16))
        assert _cuda.int4_linear(39, *args) is NotImplemented
        assert torch.equal(_cuda.int4_linear(40, *args), _cuda.int4_linear(0, *args))
        few = (args[0][:16], *args[1:])
        assert torch.equal(_cuda.int4_linear(1, *few), _cuda.int4_linear(0, *few))


def test_says_why_it_does_not_take_cpu_tensors() -> None:
    args = _call(1, 8, 32, 32, torch.bfloat16)
    assert int4_linear.why_not(*args)["cuda"] == "runs on cuda; the arguments are on cpu"


def test_the_extension_says_why_it_is_missing_or_refuses_cpu_tensors() -> None:
    if cuda.unavailable:
        words = ("ao_kernels._cuda", "AO_KERNELS_CUDA is not off", "AO_KERNELS_CUDA=on")
        assert all(each in cuda.unavailable for each in words)
        return
    from ao_kernels import _cuda

    assert _cuda.int4_linear(0, *_call(1, 8, 32, 32, torch.bfloat16)) is NotImplemented
    assert "CUDA device 63" in _cuda.device_refusal(63)
