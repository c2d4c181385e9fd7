"""The grouped linears in CUDA, on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_contract import on_gpu
from grouped_contract import Float8, Float8Dynamic, Int4, Int8, Int8Dynamic, RoundedWeights
from test_triton_grouped_linears import GroupedOnGpu
from torch import Tensor

from ao_core.testing.op_contract import Sample

# (rows of each expert, and of none; N; K; group_size) that the kernels take: few and many rows,
# uneven ones, none, experts of several tiles, one that has all, sizes that tiles do not divide.
SHAPES = [
    ([2, 0, 3], 0, 20, 128, 128),
    ([4], 0, 17, 96, 96),
    ([0, 0, 7, 0, 1], 3, 33, 256, 128),
    ([17, 1, 0, 36], 0, 9, 384, 128),
    ([0, 0], 5, 8, 64, 64),
    ([1] * 40, 2, 16, 160, 160),
    ([40, 30], 2, 140, 512, 256),
    ([300, 0, 5], 1, 130, 256, 128),
    ([0, 0, 0, 90], 0, 257, 1024, 1024),
    ([20, 60, 0], 0, 128, 416, 128),
    ([0, 1], 0, 40, 128, 128),
]
LARGE = [
    ([1, 0, 0, 1, 0, 0, 0, 0], 0, 2048, 4096, 128),
    ([9, 0, 30, 1], 2, 1536, 2048, 128),
    ([1] * 100, 0, 1536, 2048, 128),
    ([70, 50, 64], 0, 1024, 2048, 128),
    ([700, 3, 0, 250], 0, 1024, 2048, 128),
    ([300, 200], 0, 1000, 1120, 128),
    ([257, 256, 900], 5, 392, 4096, 4096),
]


class Shapes:
    """Calls of the sizes above, and of those of every grouped op. It stands in front of the op,
    whose own samples are the latter only."""

    calls: Any
    least = len(SHAPES)  # of SHAPES, how many the CUDA kernels take

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from self.calls(dtype, SHAPES)
        yield from self.calls(dtype)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for sample in self.cpu_samples(dtype):
            yield Sample(sample.name, on_gpu(sample.args))

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from self.calls(dtype, LARGE)


class OnGpu(GroupedOnGpu):
    """Whichever kernel takes a call; most of these go to CUDA's."""

    device = "cuda"
    backend, forced = "cuda", False
    least: int

    def test_most_go_to_cuda(self) -> None:
        self.op(*self._first(torch.bfloat16))  # loads the kernels
        names = [self.op.choice(*sample.args).kernel for sample in self.samples(torch.bfloat16)]
        assert names[: len(SHAPES)].count("cuda") >= self.least, names


@pytest.mark.gpu
class TestInt4(Shapes, Int4, RoundedWeights, OnGpu):
    pass


@pytest.mark.gpu
class TestInt8(Shapes, Int8, RoundedWeights, OnGpu):
    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        return super().weight(index, E, N, K, K if index % 2 else g, rng)


@pytest.mark.gpu
class TestFloat8(Shapes, Float8, RoundedWeights, OnGpu):
    least = 8  # others are float8_e5m2


@pytest.mark.gpu
class TestInt8Dynamic(Shapes, Int8Dynamic, OnGpu):
    pass


@pytest.mark.gpu
class TestFloat8Dynamic(Shapes, Float8Dynamic, OnGpu):
    least = 5  # others have scales along K, or are float8_e5m2
    activations = ("row",)

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        """The matrix units keep about 14 bits of sums of float8 products."""
        bound = super().bound(args, expected)
        if args[0].dtype != torch.float32:
            bound = bound + 2.0**-10 * self.magnitude(args)
        return bound
