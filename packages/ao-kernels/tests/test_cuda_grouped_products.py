"""float8_grouped_matmul and float8_grouped_wgrad in CUDA: every tile, ends of any kind, values that
must not leak. test_float8_grouped_matmul.py holds the ops to their contract, whoever computes.

M tokens sorted by expert, E experts, N rows of an expert's b, K features, P places.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpu_contract import check_the_current_stream, forcing
from torch import Tensor

from ao_kernels import cuda
from ao_kernels.ops import float8_grouped_matmul, float8_grouped_wgrad

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
F32 = torch.float32

TILES = [0, 128, 256]  # rows of x; 0: what the kernel chooses

# M, N, K and the ends of the experts' rows: none, one, tiles and their neighbours, all, behind M.
ROWS: list[tuple[int, int, int, list[int]]] = [
    (300, 200, 528, [0, 1, 17, 17, 256]),
    (1000, 384, 1024, [257, 513, 514, 1000]),
    (700, 130, 144, [900, 901]),
    (64, 16, 16, [0, 0, 0]),
    (40, 8, 32, list(range(1, 41))),
    (2100, 1000, 4096, [100, 1500, 1500, 2000]),
    (513, 257, 2064, [513]),
    (6000, 1024, 512, [129, 2000, 2700, 2701, 2829, 4000, 5000, 6000]),
]
# N, K and the places of each expert; so many places more hold garbage.
PLACES: list[tuple[int, int, list[int], int]] = [
    (200, 136, [0, 32, 160, 0, 1024], 64),
    (384, 520, [96, 64, 4096], 16),
    (1, 1, [32], 0),
    (129, 300, [0, 0], 48),
    (600, 1000, [32, 1504, 2048, 288, 512, 64, 800, 160], 32),
    (257, 127, [128] * 30, 0),
    (1024, 2048, [704, 1280, 0, 1056], 160),
]


def values(*shape: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(*shape, device="cuda", generator=generator)


def codes(*shape: int) -> Tensor:
    """Of rows of different sizes."""
    sizes = values(*shape[:-1], 1).abs() * 60
    return (values(*shape) * sizes).clamp(-448, 448).to(E4M3)


def scales(*shape: int) -> Tensor:
    return values(*shape).abs() / 100 + 1e-4


def ends_of(counts: list[int]) -> Tensor:
    return torch.tensor(counts, device="cuda").cumsum(0).to(torch.int32)


def matmul_case(M: int, N: int, K: int, ends: list[int]) -> tuple[Tensor, ...]:
    E, offsets = len(ends), torch.tensor(ends, dtype=torch.int32, device="cuda")
    return codes(M, K), scales(M, 1), codes(E, N, K), scales(E, N, 1), offsets


def wgrad_case(N: int, K: int, counts: list[int], more: int) -> tuple[Tensor, ...]:
    """Places behind the last end hold NaN codes."""
    E, P = len(counts), sum(counts) + more
    a, b = codes(N, P), codes(K, P)
    for each in (a, b):
        each.view(torch.uint8)[:, sum(counts) :] = 0x7F
    return a, scales(E, N), b, scales(E, K), ends_of(counts)


def spans(ends: Tensor, most: int) -> Iterator[tuple[int, slice]]:
    start = 0
    for expert, end in enumerate(ends.tolist()):
        end = min(end, most)
        yield expert, slice(start, end)
        start = end


def exact_matmul(args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """In float64, and the sums of absolute values."""
    a, a_scale, b, b_scale, offsets = args
    left, right = a.double() * a_scale.double(), b.double() * b_scale.double()
    y = left.new_zeros(a.shape[0], b.shape[1])
    size = y.clone()
    for expert, rows in spans(offsets, a.shape[0]):
        y[rows] = left[rows] @ right[expert].T
        size[rows] = left[rows].abs() @ right[expert].abs().T
    return y, size


def exact_wgrad(args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    a, a_scale, b, b_scale, ends = args
    y = a_scale.new_zeros(len(ends), a.shape[0], b.shape[0], dtype=torch.float64)
    size = y.clone()
    for expert, places in spans(ends, a.shape[1]):
        left = a[:, places].double() * a_scale[expert][:, None].double()
        right = b[:, places].double() * b_scale[expert][:, None].double()
        y[expert], size[expert] = left @ right.T, left.abs() @ right.abs().T
    return y, size


def assert_close(
    y: Tensor, found: tuple[Tensor, Tensor], dtype: torch.dtype | None, *, fast: bool, label: object
) -> None:
    """The matrix units keep about 14 bits of a sum: of 128 products, or of all of them."""
    exact, size = found
    assert y.dtype == (dtype or torch.bfloat16) and y.shape == exact.shape
    eps = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, F32: 2.0**-22}[y.dtype]
    tiny = 2.0**-24 if y.dtype == torch.float16 else 1e-30
    over = (y.double() - exact).abs() - size * 2.0 ** (-10 if fast else -12) - exact.abs() * eps
    assert (over <= tiny).all(), f"{label}: {over.max()}"


class OnGpu:
    """Only the CUDA kernels."""

    @pytest.fixture(autouse=True)
    def _forced(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if cuda.unavailable and request.function.__name__ != "test_the_extension_is_there":
            pytest.skip(cuda.unavailable)
        with forcing("cuda"):
            yield


@pytest.fixture
def tile(request: pytest.FixtureRequest) -> Iterator[int]:
    from ao_kernels import _cuda

    _cuda.force_grouped_tile(request.param)
    yield request.param
    _cuda.force_grouped_tile(0)


every_tile = pytest.mark.parametrize("tile", TILES, ids=str, indirect=True)
fast_or_not = pytest.mark.parametrize("fast", [False, True], ids=["promoted", "fast"])


@pytest.mark.gpu
class TestProducts(OnGpu):
    def test_the_extension_is_there(self) -> None:
        """Fails where it was not built, for the others are skipped then."""
        assert cuda.unavailable == ""

    @every_tile
    @fast_or_not
    def test_matmul(self, tile: int, fast: bool) -> None:
        for sizes in ROWS:
            args = matmul_case(*sizes)
            y = float8_grouped_matmul(*args, None, fast)
            assert_close(y, exact_matmul(args), None, fast=fast, label=sizes)
            assert not y[sizes[3][-1] :].any()

    @every_tile
    @fast_or_not
    def test_wgrad(self, tile: int, fast: bool) -> None:
        for sizes in PLACES:
            args = wgrad_case(*sizes)
            y = float8_grouped_wgrad(*args, None, fast)
            assert_close(y, exact_wgrad(args), None, fast=fast, label=sizes)

    @fast_or_not
    @pytest.mark.parametrize("dtype", [F32, torch.float16], ids=str)
    def test_dtypes_of_results(self, dtype: torch.dtype, fast: bool) -> None:
        """In float16 values are small enough for it."""
        for sizes in ROWS[:6]:
            a, a_scale, *others = matmul_case(*sizes)
            args = (a, a_scale / 1e4, *others)
            y = float8_grouped_matmul(*args, dtype, fast)
            assert_close(y, exact_matmul(args), dtype, fast=fast, label=sizes)
        for places in PLACES[:5]:
            a, a_scale, *others = wgrad_case(*places)
            args = (a, a_scale / 1e4, *others)
            y = float8_grouped_wgrad(*args, dtype, fast)
            assert_close(y, exact_wgrad(args), dtype, fast=fast, label=places)

    def test_promoted_sums_are_as_exact_as_short_ones(self) -> None:
        """Ones and one large product: the matrix units lose those of its own group of 128, which
        are less than its last bit there, and would lose all 16383 in a sum of their own."""
        a = torch.ones(16, 16384, device="cuda").to(E4M3)
        a[:, 0] = 448
        b = a.expand(2, 16, 16384).contiguous()
        one, ends = torch.ones(16, 1, device="cuda"), ends_of([16, 0])
        y = float8_grouped_matmul(a, one, b, one.expand(2, 16, 1).contiguous(), ends, F32, False)
        assert ((y - (448**2 + 16383)).abs() <= 128).all()
        ends = ends_of([16384, 0])
        scale = torch.ones(2, 16, device="cuda")
        y = float8_grouped_wgrad(a, scale, a, scale, ends, F32, False)
        assert ((y[0] - (448**2 + 16383)).abs() <= 128).all() and not y[1].any()

    def test_scales_of_any_size(self) -> None:
        a, a_scale, b, b_scale, offsets = matmul_case(300, 256, 512, [100, 300])
        g, g_scale, x, x_scale, ends = wgrad_case(256, 200, [64, 160], 32)
        for small in (1e-30, 1e30):
            args = (a, a_scale * small, b, b_scale / small, offsets)
            y = float8_grouped_matmul(*args, F32, False)
            assert_close(y, exact_matmul(args), F32, fast=False, label=small)
            args = (g, g_scale * small, x, x_scale / small, ends)
            y = float8_grouped_wgrad(*args, F32, False)
            assert_close(y, exact_wgrad(args), F32, fast=False, label=small)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers_stay_where_they_are(self, bad: float) -> None:
        """A NaN code or scale of one row touches that row only; of rows and experts without
        tokens, nothing."""
        a, a_scale, b, b_scale, offsets = matmul_case(600, 256, 512, [255, 256, 256, 590])
        clean = float8_grouped_matmul(a, a_scale, b, b_scale, offsets)
        a.view(torch.uint8)[255, 7] = 0x7F
        a_scale[300] = bad
        a_scale[595] = b_scale[2] = bad  # behind the last end, and an expert without tokens
        a.view(torch.uint8)[596] = 0x7F
        y = float8_grouped_matmul(a, a_scale, b, b_scale, offsets)
        assert y[255].isnan().all() and not y[300].isfinite().any()
        others = [m for m in range(600) if m not in (255, 300)]
        assert torch.equal(y[others], clean[others]) and not y[590:].any()

        g, g_scale, x, x_scale, ends = wgrad_case(300, 200, [64, 0, 160], 32)
        clean = float8_grouped_wgrad(g, g_scale, x, x_scale, ends)
        g.view(torch.uint8)[5, 63] = 0x7F  # of the last place of expert 0
        x_scale[1] = g_scale[1] = bad
        x_scale[2, 9] = bad
        y = float8_grouped_wgrad(g, g_scale, x, x_scale, ends)
        assert y[0, 5].isnan().all() and not y[1].any() and not y[2, :, 9].isfinite().any()
        y[0, 5], y[2, :, 9] = clean[0, 5], clean[2, :, 9]
        assert torch.equal(y, clean)

    @every_tile
    @fast_or_not
    def test_bits_repeat_and_graphs_capture_them(self, tile: int, fast: bool) -> None:
        """A graph follows other ends when it is replayed."""
        calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]] = [
            (float8_grouped_matmul, matmul_case(*ROWS[7]), ends_of([1, 300, 0, 2, 3, 4, 900, 7])),
            (float8_grouped_wgrad, wgrad_case(*PLACES[4]), ends_of([64, 0, 0, 32, 3200, 0, 32, 0])),
        ]
        for op, args, other in calls:
            first = op(*args, None, fast)
            ends, before = args[-1], args[-1].clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = op(*args, None, fast)
            for _ in range(20):
                y.fill_(torch.nan)
                graph.replay()
                assert torch.equal(y, first)
                assert torch.equal(op(*args, None, fast), first)
            ends.copy_(other)
            expected = op(*args, None, fast)
            graph.replay()
            assert torch.equal(y, expected) and not torch.equal(y, first)
            ends.copy_(before)

    def test_the_current_stream(self) -> None:
        for op, args in [
            (float8_grouped_matmul, matmul_case(*ROWS[1])),
            (float8_grouped_wgrad, wgrad_case(*PLACES[4])),
        ]:
            check_the_current_stream(op, tuple(a.cpu() for a in args))

    def test_any_address_and_any_strides(self) -> None:
        """Scales may start anywhere; codes are copied where rows do not begin at 16 bytes."""
        args = matmul_case(*ROWS[0])
        expected = float8_grouped_matmul(*args)
        for position, value in enumerate(args):
            moved = torch.empty(value.numel() + 1, dtype=value.dtype, device="cuda")[1:]
            moved = moved.view(value.shape).copy_(value)
            others = (*args[:position], moved, *args[position + 1 :])
            assert torch.equal(float8_grouped_matmul(*others), expected), position
        a, a_scale, b, b_scale, offsets = args
        strided = a.T.contiguous().T, a_scale.view(-1), b.mT.contiguous().mT, b_scale.squeeze(2)
        assert torch.equal(float8_grouped_matmul(*strided, offsets), expected)

    def test_results_beyond_31_bits(self) -> None:
        N, K, counts = 16384, 16400, [32] * 9
        args = wgrad_case(N, K, counts, 0)
        y = float8_grouped_wgrad(*args)
        a, a_scale, b, b_scale, ends = args
        for expert in (0, 7, 8):
            last = (a[-200:], a_scale[expert : expert + 1, -200:], b, b_scale[expert : expert + 1])
            at = slice(32 * expert, 32 * expert + 32)
            part = (last[0][:, at], last[1], last[2][:, at], last[3], ends[:1])
            assert_close(
                y[expert : expert + 1, -200:], exact_wgrad(part), None, fast=False, label=expert
            )

    def test_what_it_does_not_take(self) -> None:
        with forcing(None):
            args = matmul_case(32, 16, 64, [8, 32])
            assert float8_grouped_matmul.choice(*args).kernel == "cuda"
            wgrad = wgrad_case(16, 16, [32, 64], 0)
            assert float8_grouped_wgrad.choice(*wgrad).kernel == "cuda"
            for op, call, reason in [
                (
                    float8_grouped_matmul,
                    (args[0].to(F32).to(E5M2), *args[1:]),
                    "dtype torch.float8_e5m2",
                ),
                (
                    float8_grouped_matmul,
                    matmul_case(8, 16, 24, [8]),
                    "24 codes; the CUDA kernels take",
                ),
                (float8_grouped_matmul, matmul_case(0, 16, 32, [0]), "there are no values"),
                (
                    float8_grouped_wgrad,
                    wgrad_case(16, 16, [32], 8),
                    "40 codes; the CUDA kernels take",
                ),
                (float8_grouped_wgrad, wgrad_case(16, 16, [32] * 1025, 0), "1025 experts"),
            ]:
                assert reason in op.why_not(*call)["cuda"]


def test_refusals_need_no_gpu() -> None:
    """What is asked before the device is."""
    if cuda.unavailable:
        pytest.skip(cuda.unavailable)
    from ao_kernels.cuda.experts import product_refusal

    def made(*shape: int, dtype: Any = E4M3) -> Tensor:
        return torch.empty(*shape, device="meta").to(dtype)

    ends = torch.zeros(3, dtype=torch.int32)
    for a, b, reason in [
        (made(32, 64), made(3, 16, 64, dtype=E5M2), "codes have dtype torch.float8_e5m2; the CUDA"),
        (
            made(32, 40),
            made(3, 16, 40),
            "rows have 40 codes; the CUDA kernels take multiples of 16",
        ),
        (made(0, 64), made(3, 16, 64), "there are no values"),
        (made(2**22, 16), made(2**22, 16), "4194304 x 16 by 3 x 4194304 x 16 codes are too many"),
        (made(2**30, 16), made(3, 16, 16), "are too many for the CUDA kernels"),
    ]:
        assert reason in (product_refusal(a, b, ends) or ""), reason
