"""The grouped linears in Triton: interpreted at small sizes, compiled for absent GPUs, and on a
GPU."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu_contract import OnGpu, forcing
from grouped_contract import (
    LARGE,
    Float8,
    Float8Dynamic,
    Float8Int4,
    Grouped,
    Int4,
    Int8,
    Int8Dynamic,
    Intx,
    RoundedInCuda,
)
from torch import Tensor
from triton_compilation import ARCHITECTURES, compiled_launches
from triton_contract import Interpreted

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_dynamic_grouped_linear, int8_dynamic_grouped_linear

CASES = [Int4, Intx, Int8, Int8Dynamic, Float8, Float8Dynamic, Float8Int4]


class GroupedInterpreted(Grouped, Interpreted):
    """Of the odd shapes all rows and all sizes, most of them twice, but not each with each."""

    every = 2

    def odd_shapes(self) -> list[Any]:
        return super().odd_shapes()[::6] + super().odd_shapes()[1::6]


@pytest.mark.interpreted
class TestInt4(Int4, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestIntx(Intx, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestInt8(Int8, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestInt8Dynamic(Int8Dynamic, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestFloat8(Float8, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestFloat8Dynamic(Float8Dynamic, GroupedInterpreted):
    pass


@pytest.mark.interpreted
class TestFloat8Int4(Float8Int4, GroupedInterpreted):
    pass


class GroupedOnGpu(Grouped, OnGpu):
    """A grouped op on a GPU: what CUDA graphs replay with other offsets, too."""

    backend, forced = "triton", True
    calls: Any

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from self.calls(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield from self.calls(dtype, LARGE)

    def test_graphs_replay_on_new_offsets(self) -> None:
        x, *weight, offsets, bias = self._first(torch.bfloat16)
        fixed = offsets.clone()
        self.op(x, *weight, fixed, bias)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = self.op(x, *weight, fixed, bias)
        for ends in ([5, 5, 5], [0, 0, 5], [1, 2, 2], [0, 0, 0], [2, 2, 5]):
            fixed.copy_(torch.tensor(ends, dtype=torch.int32))
            graph.replay()
            assert torch.equal(y, self.op(x, *weight, fixed.clone(), bias)), ends


@pytest.mark.gpu
class TestInt4OnGpu(Int4, RoundedInCuda, GroupedOnGpu):
    device = "cuda"


@pytest.mark.gpu
class TestIntxOnGpu(Intx, GroupedOnGpu):
    device = "cuda"


@pytest.mark.gpu
class TestInt8OnGpu(Int8, RoundedInCuda, GroupedOnGpu):
    device = "cuda"


@pytest.mark.gpu
class TestInt8DynamicOnGpu(Int8Dynamic, GroupedOnGpu):
    device = "cuda"


@pytest.mark.gpu
class TestFloat8OnGpu(Float8, RoundedInCuda, GroupedOnGpu):
    device = "cuda"


@pytest.mark.gpu
class TestFloat8DynamicOnGpu(Float8Dynamic, GroupedOnGpu):
    device = "cuda"

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        """The matrix units keep about 14 bits of sums of float8 products."""
        bound = super().bound(args, expected)
        x, codes = args[:2]
        if x.dtype != torch.float32 and codes.dtype == torch.float8_e4m3fn:
            bound += 2.0**-10 * self.magnitude(args)
        return bound


@pytest.mark.gpu
class TestFloat8Int4OnGpu(Float8Int4, GroupedOnGpu):
    device = "cuda"


@pytest.mark.triton
@pytest.mark.parametrize(
    ("case", "architecture", "kilobytes"),
    [
        *((case, architecture, 99) for case in CASES for architecture in ARCHITECTURES),
        *((case, 90, 227) for case in (Int8Dynamic, Float8, Float8Int4)),
    ],
)
def test_compiles_for(
    case: Any, architecture: int, kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few, some and many tokens an expert; even and odd sizes, each in bfloat16 and in another
    dtype of activations; and what is taken where there is the shared memory of Hopper."""
    from ao_kernels.triton import tiles

    sizes = [([1, 0, 2], 512, 1024, 128), ([40, 60], 512, 1024, 128), ([900, 2], 512, 1024, 128)]
    if kilobytes == 99:
        sizes += [([1, 0, 2], 99, 500, 40), ([200], 99, 500, 40)]
        dtypes = {torch.bfloat16: sizes, torch.float32: sizes[::2], torch.float16: sizes[1::2]}
    else:
        dtypes = {torch.bfloat16: [*sizes, ([1, 0, 2], 512, 4096, 128)]}
    monkeypatch.setattr(tiles, "shared_bytes", lambda _: kilobytes << 10)
    calls, found = [], case()
    for dtype, taken in dtypes.items():
        shapes = [(rows, 0, *others) for rows, *others in taken]
        calls += [sample.args for sample in found.calls(dtype, shapes)]
    launches = list(compiled_launches(found.op.name, calls, architecture, monkeypatch))
    products = [launch for launch in launches if launch.name == "_grouped_product"]
    assert len(products) >= (8 if kilobytes == 99 else 3)
    if case is Float8Dynamic:
        assert any("e4m3.e4m3" in each.ptx for each in products) == (architecture >= 89)
    if case is Int8Dynamic:
        assert all("s32.s8.s8" in each.ptx for each in products)
    for launch in launches:
        assert launch.shared_bytes <= kilobytes << 10, f"{launch.name} does not fit"


@pytest.mark.parametrize("case", CASES)
def test_says_why_it_does_not_take_cpu_tensors(case: Any) -> None:
    found = case()
    reasons = found.op.why_not(*next(found.calls(torch.float32)).args)
    assert reasons["triton"] == "runs on cuda; the arguments are on cpu"


@pytest.mark.interpreted
def test_more_features_than_int32_sums_hold() -> None:
    K = 133_145
    codes = torch.ones(1, 1, K, dtype=torch.int8)
    offsets = torch.ones(1, dtype=torch.int32)
    args = (torch.ones(1, K), codes, torch.ones(1, 1, 1), offsets)
    with forcing("triton"):
        reasons = int8_dynamic_grouped_linear.why_not(*args)
    assert "adds up to 133144 products" in reasons["triton"]


def _shared_scales(device: str) -> None:
    """More tokens of an expert than are read at once; none; NaN; and tokens of no expert."""
    from ao_kernels.triton.experts import _share_scales

    ends = [3, 2203, 2203, 3300, 3302]
    scale = torch.rand(3305, generator=torch.Generator().manual_seed(0))
    scale[3000] = torch.nan
    expected, start = scale.clone(), 0
    for end in ends:
        if end > start:
            expected[start:end] = scale[start:end].max()  # NaN where one is
        start = end
    found, offsets = scale.to(device), torch.tensor(ends, dtype=torch.int32, device=device)
    _share_scales[(len(ends),)](found, offsets, len(scale), BLOCK=1024)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
def test_tokens_of_an_expert_share_the_largest_scale() -> None:
    _shared_scales("cpu")


@pytest.mark.gpu
def test_tokens_of_an_expert_share_the_largest_scale_on_a_gpu() -> None:
    _shared_scales("cuda")


def _rows_around_the_library(device: str) -> None:
    """Ends behind the tokens are bounded, and rows of no expert become zeros."""
    from ao_kernels.triton.grouped_library import _bound_ends, _clear_rest

    for T, ends in ((7, [2, 2, 5]), (4, [3, 6, 9]), (5, [0, 0, 0]), (3, [1, 2, 3])):
        offsets = torch.tensor(ends, dtype=torch.int32, device=device)
        found, y = torch.full_like(offsets, -1), torch.full((T, 48), 3.0, device=device)
        _bound_ends[(1,)](offsets, found, T, 3, EXPERTS=4)
        _clear_rest[(2,)](offsets, y, T, 3, 48, BLOCK=32)
        assert found.tolist() == [min(end, T) for end in ends]
        used = min(ends[-1], T)
        assert (y[:used] == 3).all() and (y[used:] == 0).all(), (T, ends)


@pytest.mark.interpreted
def test_rows_around_the_library() -> None:
    _rows_around_the_library("cpu")


@pytest.mark.gpu
def test_rows_around_the_library_on_a_gpu() -> None:
    _rows_around_the_library("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("fast_sum", [True, False], ids=["short", "long"])
def test_the_library_multiplies_float8_codes(fast_sum: bool) -> None:
    """With rows of no expert, experts without rows, and offsets that are behind the tokens."""
    from ao_kernels.triton import grouped_library
    from ao_kernels.triton.grouped_product import Weight

    E, N, K = 4, 160, 512 if fast_sum else 4608
    x = torch.randn(300, K, device="cuda").bfloat16()
    codes = torch.randn(E, N, K, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.rand(E, N, 1, device="cuda") / K**0.5
    args = (x, codes, scale, 1, 1 << 30, "row")
    if grouped_library.refusal(x, "row", Weight(codes, scale, None, 0, 1, K), None):
        pytest.skip("torch._scaled_grouped_mm is taken on compute capability 9.0")
    for ends in ([100, 100, 250, 280], [0, 299, 300, 300], [150, 290, 400, 500]):
        offsets = torch.tensor(ends, dtype=torch.int32, device="cuda")
        with forcing("triton"):
            y = float8_dynamic_grouped_linear(*args, offsets, None)
        exact = float8_dynamic_grouped_linear.reference(x.double(), *args[1:], offsets, None)
        assert (y[min(ends[-1], 300) :] == 0).all()
        apart = (y.double() - exact).norm() / exact.norm()
        assert apart < 0.004, apart


@pytest.mark.triton
def test_the_grid_is_as_large_as_the_worst_offsets_need() -> None:
    from ao_kernels.triton.grouped_product import most_tiles

    for T, E, block_m in itertools.product(range(1, 10), range(1, 4), range(1, 5)):
        needed = [
            sum(-(-rows // block_m) for rows in (*sizes, T - sum(sizes)))
            for sizes in itertools.product(range(T + 1), repeat=E)
            if sum(sizes) <= T
        ]
        assert most_tiles(T, E, block_m) == max(needed), (T, E, block_m)
