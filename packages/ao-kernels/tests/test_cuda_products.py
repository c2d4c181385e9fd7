"""The linears of quantized activations in CUDA, on a GPU: int8 and float8, dynamic and static."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import test_triton_float8_dynamic_linear as float8_dynamic
import test_triton_float8_static_linear as float8_static
import test_triton_int8_dynamic_linear as int8_dynamic
import test_triton_int8_static_linear as int8_static
import torch
from float8_samples import WHOLE, multiplied_as_float8
from gpu_contract import OnGpu, check_the_current_stream, on_gpu
from torch import Tensor

from ao_core.numerics import quantize_float8_tokens, quantize_tokens
from ao_core.testing.op_contract import Sample
from ao_kernels import cuda
from ao_kernels.ops import float8_dynamic_linear, int8_dynamic_linear

# Tokens at the ends of every kind of tile, output features beyond its last row, input features
# that end within a stage, and enough of them to share a tile.
_SHAPES = [
    *[(M, 200, 528) for M in (1, 15, 16, 17, 32, 33, 64, 65, 128, 129, 300)],
    *[(M, 2048, 4096) for M in (2, 32, 64, 100)],
    *[(M, 500, 14336) for M in (3, 129)],
    (700, 13000, 64),
    (2, 1, 16),
    (1, 64, 32768),
]


@contextlib.contextmanager
def launching(launches: int) -> Iterator[None]:
    """Every call of few tokens in so many launches."""
    from ao_kernels import _cuda

    _cuda.force_launches(launches)
    try:
        yield
    finally:
        _cuda.force_launches(0)


class CudaProduct(OnGpu):
    """OnGpu for the CUDA kernels, which are asked first; the op takes others where they refuse."""

    backend, forced = "cuda", False

    def call(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        """Arguments on the CPU, of every kind of scale that the kernels take."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _extension(self) -> None:
        assert cuda.unavailable == ""

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        bound = super().bound(args, expected)
        if multiplied_as_float8(args[0], args[1]):
            bound += 2.0**-10 * self.magnitude(args)
        return bound

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_every_kind_of_tile(self, dtype: torch.dtype) -> None:
        taken = 0
        for M, N, K in _SHAPES:
            for call in self.call(M, N, K, dtype):
                args = on_gpu(call)
                taken += "cuda" not in self.op.why_not(*args)
                self._match(args)
        assert taken >= len(_SHAPES) or dtype == torch.float32

    def _taken(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        """Calls on the GPU that the kernels take: all but float8 products of float32."""
        for call in self.call(M, N, K, dtype):
            args = on_gpu(call)
            if "cuda" not in self.op.why_not(*args):
                yield args
            else:
                assert dtype == torch.float32

    def test_the_current_stream(self) -> None:
        for launches in (1, 2):
            with launching(launches):
                for call in self.call(2, 512, 1024, torch.bfloat16):
                    check_the_current_stream(self.op, call)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_one_launch_has_the_bits_of_two(self, dtype: torch.dtype) -> None:
        """Tokens at the ends of its tiles; K that ends within a stage, that CTAs share, that is
        less than a stage; more output features than there are CTAs at once."""
        shapes = [(M, 200, 528) for M in range(1, 17)]
        shapes += [(M, 1024, 4096) for M in (1, 5, 16)]
        shapes += [(3, 200, 14336), (11, 200, 14336), (2, 1, 16), (9, 77, 112), (1, 64, 32768)]
        shapes += [(3, 17000, 272), (8, 64, 4112), (13, 17000, 144)]
        for M, N, K in shapes:
            for call in self._taken(M, N, K, dtype):
                x, *others = call
                wide = torch.full((M, K + 24), torch.nan, dtype=dtype, device="cuda")
                wide[:, 8 : 8 + K] = x
                strided = wide[:, 8 : 8 + K]  # rows that begin at multiples of 16 bytes
                with launching(2):
                    expected = self.op(x, *others)
                with launching(1):
                    assert torch.equal(self.op(x, *others), expected), (M, N, K)
                    assert torch.equal(self.op(strided, *others), expected), (M, N, K)

    def test_tokens_that_are_not_finite_in_one_launch(self) -> None:
        """NaN in the same places, and the same bits in other tokens."""
        for dtype in (torch.bfloat16, torch.float16):
            for M, N, K in [(16, 200, 528), (16, 1024, 4096)]:
                for call in self._taken(M, N, K, dtype):
                    x, *others = call
                    x[1], x[3, K - 1], x[4, 0], x[6, 7] = 0, torch.nan, torch.inf, -torch.inf
                    for tokens in (x, x[:3], x[3:4], x[:8]):
                        with launching(2):
                            expected = self.op(tokens, *others)
                        with launching(1):
                            y = self.op(tokens, *others)
                        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
                        assert y.isnan().any() == (not tokens.isfinite().all())


@pytest.mark.gpu
class TestInt8Dynamic(int8_dynamic.Int8DynamicLinear, CudaProduct):
    device = "cuda"

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield Sample("first", next(self.call(3, 48, 96, dtype)))
        yield from int8_dynamic._samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for shape in [(1, 4096, 4096), (16, 2048, 11008), (1024, 4096, 4096)]:
            yield Sample(f"{shape} {dtype}", int8_dynamic._call(*shape, dtype))

    def call(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        x, codes, scale, bias = int8_dynamic._call(M, N, K, dtype)
        yield x, codes, scale, bias
        yield x, codes, scale[:1], None

    @pytest.mark.parametrize(("launches", "M"), [(1, 16), (2, 32)])
    def test_codes_are_those_of_the_numerics(self, launches: int, M: int) -> None:
        """By the product with a unit matrix, bit for bit."""
        K = 512
        x = torch.randn(M, K) * torch.logspace(-40, 37, M, dtype=torch.float64)[:, None].float()
        x[3], x[7, 5], x[8, 6], x[9, 0] = 0, torch.nan, torch.inf, 1e-45
        unit, one = torch.eye(K, dtype=torch.int8), torch.ones(1, 1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            tokens = x.to(dtype)
            codes, scale, _ = quantize_tokens(tokens)
            with launching(launches):
                y = int8_dynamic_linear(*on_gpu((tokens, unit, one))).cpu()
            torch.testing.assert_close(y, (codes * scale).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
class TestInt8Static(int8_static.Int8StaticLinear, CudaProduct):
    device = "cuda"

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield Sample("first", next(self.call(3, 48, 96, dtype)))
        yield from int8_static._samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield Sample(f"{dtype}", int8_static._call(16, 2048, 11008, dtype))

    def call(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield int8_static._call(M, N, K, dtype)


@pytest.mark.gpu
class TestFloat8Dynamic(float8_dynamic.Float8DynamicLinear, CudaProduct):
    device = "cuda"

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield Sample("first", next(self.call(3, 48, 96, dtype)))
        yield from float8_dynamic._samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for call in self.call(64, 4096, 14336, dtype):
            yield Sample(f"{dtype}", call)

    def call(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for activation, block in (
            ("row", (1, WHOLE)),
            ("tensor", (WHOLE,) * 2),
            ("block", (128,) * 2),
        ):
            yield float8_dynamic._call(M, N, K, *block, dtype, activation=activation)
            yield float8_dynamic._call(
                M, N, K, *block, dtype, activation=activation, bias=torch.bfloat16
            )

    @pytest.mark.parametrize(("launches", "M"), [(1, 16), (2, 30)])
    def test_codes_are_those_of_the_numerics(self, launches: int, M: int) -> None:
        """By the product with a unit matrix, bit for bit."""
        K = 512
        x = torch.randn(M, K) * torch.logspace(-40, 35, M, dtype=torch.float64)[:, None].float()
        x[3], x[9, 0] = 0, 1e-40
        unit = torch.eye(K).to(torch.float8_e4m3fn)
        for activation, block, of_x in (
            ("row", (1, WHOLE), (1, K)),
            ("tensor", (WHOLE, WHOLE), (M, K)),
            ("block", (128, 128), (1, 128)),
        ):
            scale = torch.ones(-(-K // block[0]), -(-K // block[1]))
            tokens = x.bfloat16()
            codes, steps = quantize_float8_tokens(tokens, block=of_x)
            steps = steps.repeat_interleave(of_x[0], 0)[:M].repeat_interleave(of_x[1], 1)
            with launching(launches):
                y = float8_dynamic_linear(*on_gpu((tokens, unit, scale, *block, activation))).cpu()
            assert torch.equal(y, (codes.float() * steps).bfloat16()), activation

    def test_an_unknown_activation_is_refused(self) -> None:
        """Also by the direct entry, which is asked before the op's check."""
        x, codes, scale, *block, _, bias = on_gpu(next(self.call(3, 48, 96, torch.bfloat16)))
        with pytest.raises(ValueError, match="rows"):
            float8_dynamic_linear(x, codes, scale, *block, "rows", bias)


@pytest.mark.gpu
class TestFloat8Static(float8_static.Float8StaticLinear, CudaProduct):
    device = "cuda"

    def cpu_samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        yield Sample("first", next(self.call(3, 48, 96, dtype)))
        yield from float8_static._samples(dtype)

    def large(self, dtype: torch.dtype) -> Iterator[Sample]:
        for call in self.call(64, 4096, 14336, dtype):
            yield Sample(f"{dtype}", call)

    def call(self, M: int, N: int, K: int, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for block in (1, WHOLE):
            args = float8_static.float8_call(M, N, K, block, WHOLE, dtype)
            yield float8_static._with_scale(args, 3.0)


@pytest.mark.gpu
@pytest.mark.parametrize("launches", [1, 2])
def test_a_graph_of_calls_that_follow_each_other(launches: int) -> None:
    """Grids that start early read no tokens that the one in front is still writing: as in eager
    mode, where none of them is chained."""
    for M, K in ((1, 2048), (8, 4096), (3, 1024)):
        weights = [torch.randint(-127, 128, (K, K), dtype=torch.int8).cuda() for _ in range(8)]
        scale = torch.full((K, 1), 1 / (64 * K**0.5), device="cuda")
        x = torch.randn(M, K, device="cuda").bfloat16()

        def run(
            x: Tensor = x, weights: list[Tensor] = weights, scale: Tensor = scale
        ) -> list[Tensor]:
            found = [x]
            for codes in weights * 3:
                found.append(int8_dynamic_linear(found[-1], codes, scale))
            return found

        with launching(launches):
            expected = run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = run()
        for _ in range(20):
            for y in found[1:]:
                y.fill_(torch.nan)
            graph.replay()
            assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
@pytest.mark.parametrize("launches", [1, 2])
def test_a_graph_of_calls_and_of_what_writes_their_weights(launches: int) -> None:
    """Grids that start early read no weight that the graph is still writing."""
    with launching(launches):
        _check_a_graph_of_calls_and_of_what_writes_their_weights()


def _check_a_graph_of_calls_and_of_what_writes_their_weights() -> None:
    K, layers = 2048, 12
    x = torch.randn(4, K, device="cuda").bfloat16()
    sources = [
        torch.randint(-127, 128, (K, K), dtype=torch.int8, device="cuda") for _ in range(layers)
    ]
    codes = torch.zeros_like(sources[0])
    others = torch.zeros_like(codes)
    scale = torch.rand(K, 1, device="cuda")
    expected = [int8_dynamic_linear(x, each, scale) for each in sources]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = []
        for each in sources:
            codes.copy_(each)
            found.append(int8_dynamic_linear(x, codes, scale))  # follows what wrote its weight
            others.copy_(each)
            int8_dynamic_linear(x, codes, scale)
            found.append(int8_dynamic_linear(x, others, scale))  # follows one of its own kind
    for _ in range(20):
        graph.replay()
        for index, each in enumerate(expected):
            assert torch.equal(found[2 * index], each) and torch.equal(found[2 * index + 1], each)
