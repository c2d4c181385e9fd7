"""What is checked of every CUDA kernel of a weight-only linear."""

from typing import Any

import pytest
import torch
from gpu_contract import WeightOnlyOnGpu, check_the_current_stream, on_gpu
from torch import Tensor

from ao_kernels import cuda, force

# (M, N, K, group_size) with which weight_only_large takes each of its tiles on a GPU of 132
# multiprocessors, with K split and not; the last with a grid for the last wave.
TILES = [
    (20, 1024, 2048, 128),
    (20, 6144, 2048, 2048),
    (32, 4099, 4128, 128),
    (48, 4096, 4096, 128),
    (48, 8200, 1184, 128),
    (40, 14336, 1024, 1024),
    (128, 4096, 4096, 4096),
    (128, 4096, 4096, 128),
    (256, 6144, 4096, 64),
    (400, 6144, 640, 256),
    (256, 14336, 512, 512),
    (256, 14336, 512, 128),
    (500, 4096, 2048, 128),
    (384, 14336, 4096, 4096),
    (768, 6144, 4096, 4096),
    (768, 6144, 4096, 128),
    (1023, 14402, 2048, 128),
    (1500, 4099, 4128, 4128),
]


class CudaLinear(WeightOnlyOnGpu):
    """WeightOnlyOnGpu, and what the kernels for few tokens must do: any address, stream and device.

    Where the CUDA kernels take nothing (float32, odd shapes of few tokens), the op takes another.
    """

    backend, forced = "cuda", False
    group_name = "group_size"
    refuses_many_tokens = "17 tokens; the CUDA kernels take up to 16"

    def call(self, M: int, N: int, K: int, group_size: int, dtype: torch.dtype) -> tuple[Any, ...]:
        """Arguments of the op, on the CPU."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _extension(self, request: pytest.FixtureRequest) -> None:
        if cuda.unavailable and request.function.__name__ != "test_the_extension_is_there":
            pytest.skip(cuda.unavailable)

    def test_the_extension_is_there(self) -> None:
        """Fails where it was not built, for the others are skipped then."""
        assert cuda.unavailable == ""

    def test_samples_reach_the_kernel(self) -> None:
        taken = [s for s in self.samples(torch.float16) if "cuda" not in self.op.why_not(*s.args)]
        assert len(taken) >= 10

    @pytest.mark.parametrize("M", range(1, 17))
    def test_every_number_of_tokens(self, M: int) -> None:
        before = force("cuda")
        try:
            self._match(on_gpu(self.call(M, 200, 1024, 128, torch.bfloat16)))
            self._match(on_gpu(self.call(M, 72, 4096, 32, torch.float16)))
        finally:
            force(before)

    def test_any_address(self) -> None:
        """Contiguous arguments that start anywhere."""
        args = on_gpu(self.call(3, 40, 512, 64, torch.bfloat16))
        expected = self.op(*args)
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                moved = torch.empty(value.numel() + 1, dtype=value.dtype, device="cuda")[1:]
                moved = moved.view(value.shape).copy_(value)
                others = (*args[:position], moved, *args[position + 1 :])
                assert "cuda" not in self.op.why_not(*others)
                assert torch.equal(self.op(*others), expected), position

    def test_the_current_stream(self) -> None:
        check_the_current_stream(self.op, self.call(2, 512, 1024, 128, torch.bfloat16))

    def test_another_device_than_the_current_one(self) -> None:
        if torch.cuda.device_count() < 2:
            pytest.skip("needs a CUDA device more")
        args = self.call(2, 64, 256, 64, torch.bfloat16)
        there = [a.to("cuda:1") if isinstance(a, Tensor) else a for a in args]
        y = self.op(*there)
        assert y.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
        assert torch.equal(y.cpu(), self.op(*on_gpu(args)).cpu())

    def test_what_it_does_not_take(self) -> None:
        for call, reason in [
            ((17, 16, 128, 32, torch.float16), self.refuses_many_tokens),
            (
                (1, 16, 136, 136, torch.bfloat16),
                "136 input features; the CUDA kernels take multiples of 32",
            ),
            (
                (1, 16, 96, 48, torch.bfloat16),
                f"{self.group_name} is 48; the CUDA kernels take multiples of 32",
            ),
            ((1, 16, 128, 32, torch.float32), "float32; the CUDA kernels take bfloat16"),
        ]:
            assert reason in self.op.why_not(*on_gpu(self.call(*call)))["cuda"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_many_tokens(self, dtype: torch.dtype) -> None:
        """Every kind of launch: by tokens, groups, ends of tiles, and a row-wide scale."""
        shapes = [(17, 128, 512, 128), (33, 200, 416, 64), (64, 1000, 1024, 32), (100, 129, 96, 96)]
        shapes += [(128, 16384, 256, 128), (300, 130, 2048, 256), (257, 1024, 4096, 128)]
        shapes += [(40, 77, 136, 136), (2049, 96, 256, 32), (500, 13000, 64, 64)]
        for shape in shapes:
            self._match(on_gpu(self.call(*shape, dtype)))

    @pytest.mark.parametrize("shape", TILES, ids=str)
    def test_every_tile(self, shape: tuple[int, int, int, int]) -> None:
        args = on_gpu(self.call(*shape, torch.bfloat16))
        self._match(args)
        assert torch.equal(self.op(*args), self.op(*args))

    def test_two_grids_in_graphs(self) -> None:
        """The second does not wait for the first where it reads codes: twice, and on new data."""
        x, *others = on_gpu(self.call(768, 6144, 4096, 4096, torch.bfloat16))
        self.op(x, *others)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = [self.op(x, *others) for _ in range(2)]
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            for y in results:
                y.fill_(float("nan"))
            graph.replay()
            expected = self.op(x, *others)
            assert all(torch.equal(y, expected) for y in results)

    def test_rows_do_not_depend_on_their_batch(self) -> None:
        """Every token of one launch shape has the same bits wherever it stands."""
        x, *others = on_gpu(self.call(16, 512, 1024, 128, torch.bfloat16))
        y = self.op(x, *others)
        assert torch.equal(self.op(x.flip(0), *others), y.flip(0))
