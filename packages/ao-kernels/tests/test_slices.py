"""cuda/slices.py: a weight dequantized slice by slice. Boundaries and what slices are made of on
the CPU, products on a GPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from weight_samples import Weight, weights

from ao_kernels.cuda import slices
from ao_kernels.ops import int4_linear

MIB = 1 << 20
SIDE = pytest.mark.parametrize("side_stream", [False, True], ids=["one stream", "beside"])
_CHUNK = 128 * 2 * 600  # bytes of 128 rows of 600 features, 16 bits each


def _boundaries(M: int, N: int, K: int, mib: int, **others: int) -> tuple[int, ...]:
    return slices.boundaries(M, N, 2 * K, multiprocessors=132, most_bytes=mib * MIB, **others)


def _waves(M: int, ends: tuple[int, ...]) -> int:
    return sum(slices._waves(M, end - begin, 132) for begin, end in pairwise(ends))


class TestBoundaries:
    def test_slices_are_aligned_cover_all_rows_and_fit(self) -> None:
        for M in (512, 1000, 4096, 30000):
            for N, K in [(14336, 4096), (4096, 14336), (50257, 768), (4099, 4096), (1, 9), (0, 64)]:
                for mib in (1, 8, 32, 48):
                    for multiple in (1, 96, 128):
                        ends = _boundaries(M, N, K, mib, multiple=multiple)
                        assert ends[0] == 0 and ends[-1] == N
                        sizes = [end - begin for begin, end in pairwise(ends)]
                        assert all(end % 128 == end % multiple == 0 for end in ends[:-1])
                        assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]
                        least = 384 if multiple == 96 else 128
                        assert sizes[0] * 2 * K <= max(mib * MIB, least * 2 * K)

    def test_a_weight_that_fits_is_one_slice(self) -> None:
        assert _boundaries(4096, 4096, 4096, 32) == (0, 4096)
        assert len(_boundaries(4096, 4097, 4096, 32)) > 2

    def test_slices_fill_the_waves_of_many_tokens(self) -> None:
        """As few waves of tiles as the whole weight: a slice costs launches only."""
        for N, K in [(14336, 4096), (6144, 4096), (4096, 4096), (4096, 14336)]:
            for M in (4096, 8192):
                ends = _boundaries(M, N, K, 32)
                assert _waves(M, ends) == slices._waves(M, N, 132), (N, K, M)
        assert _boundaries(4096, 14336, 4096, 32) == (0, 4096, 8192, 12288, 14336)

    def test_the_cheapest_number_of_rows(self) -> None:
        """2048 rows by 2048 tokens are 128 tiles, a wave; 2560, which would fit, take two."""
        ends = slices.boundaries(2048, 8192, 2 * 4096, multiprocessors=128, most_bytes=20 * MIB)
        assert ends == (0, 2048, 4096, 6144, 8192)

    def test_refusals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slices, "_multiprocessors", lambda device: 132)
        codes = torch.empty(14336, 2048, dtype=torch.uint8, device="meta")
        x = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
        assert slices.refusal(x, codes, None) is None
        assert slices.refusal(x.view(2, 2048, 4096), codes, None) is None
        assert slices.refusal(x[:2048], codes, None) is None
        assert slices.refusal(x[:1024], codes, None) == (
            "1024 tokens of slices are 4 waves of tiles, those of the whole 3.4"
        )
        assert "512 on" in str(slices.refusal(x[:511], codes, None))
        assert "bias" in str(slices.refusal(x, codes, torch.empty(14336)))
        assert "no more than 33554432 bytes" in str(slices.refusal(x, codes[:4096], None))
        long = torch.empty(4096, 14336, dtype=torch.bfloat16, device="meta")
        assert slices.refusal(long, codes[:4096], None) is None
        assert "4 waves" in str(slices.refusal(long[:2048], codes[:4096], None))

    def test_zero_bytes_turn_slices_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(slices, "SLICE_BYTES", 0)
        codes = torch.empty(14336, 2048, dtype=torch.uint8, device="meta")
        x = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
        assert slices.refusal(x, codes, None) is not None


def test_slices_of_every_kind_of_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its codes, scales and zeros: with plain torch in the place of the kernel."""
    from ao_kernels.ops import layout

    def dequantize(
        like: Tensor,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bits: int,
        group_size: int,
        block_n: int,
    ) -> Tensor:
        K = like.shape[1]
        if codes.dtype.is_floating_point:
            return layout.dequantize_float8(codes, scale, block_n, group_size, like.dtype)
        if not bits:
            return layout.dequantize_int8(codes, scale, group_size=group_size, dtype=like.dtype)
        return layout.dequantize_intx(
            codes, scale, zero, bits=bits, group_size=group_size, length=K, dtype=like.dtype
        )

    taken: list[int] = []
    monkeypatch.setattr(slices, "_dequantize", lambda *a: taken.append(0) or dequantize(*a))
    monkeypatch.setattr(slices, "_multiprocessors", lambda device: 2)
    for name, weight in weights(1000, 600):
        x = torch.randn(2, 40, 600)
        taken.clear()
        y = slices.linear(x, *weight[:6], most_bytes=4 * _CHUNK)
        assert y.shape == (2, 40, 1000)
        # 32 bits a weight: two chunks a slice; blocks of 96 rows: 384; of 5: 640; of N: one slice.
        assert len(taken) in (3, 2, 4, 8, 1), name
        torch.testing.assert_close(y, x @ weight.expected.T, msg=name)


@pytest.mark.gpu
class TestOnGpu:
    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    @pytest.mark.parametrize("shape", [(1000, 600), (33, 1001), (64, 4096), (7, 8)], ids=str)
    def test_dequantized_weights_are_exact(
        self, shape: tuple[int, int], dtype: torch.dtype
    ) -> None:
        """What ``slices`` and ``dequantized`` multiply; codes also at addresses of 4 * n."""
        from ao_kernels import _cuda

        N, K = shape
        like = torch.empty(0, K, dtype=dtype, device="cuda")
        for name, weight in weights(N, K):
            on_gpu = weight.to("cuda")
            found = _cuda.dequantize(like, *on_gpu[:6])
            assert torch.equal(found, on_gpu.expected.to(dtype)), name
            moved = torch.empty(on_gpu.codes.numel() + 4, dtype=torch.uint8, device="cuda")[4:]
            moved = moved.view(on_gpu.codes.dtype).view(on_gpu.codes.shape).copy_(on_gpu.codes)
            assert torch.equal(_cuda.dequantize(like, moved, *on_gpu[1:6]), found), name

    @SIDE
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_every_kind_of_weight(self, dtype: torch.dtype, side_stream: bool) -> None:
        for name, weight in weights(1000, 600):
            self._match(name, weight.to("cuda"), (3, 100, 600), dtype, side_stream)

    @SIDE
    def test_many_slices(self, side_stream: bool) -> None:
        """Memory that is used again too early would show."""
        weight = _large("cuda")
        x = torch.randn(2048, 4096, device="cuda").bfloat16()
        expected = x @ weight.expected.bfloat16().T
        for _ in range(20):
            y = _linear(x, weight, 4 * MIB, side_stream)
            assert (y - expected).abs().max() <= 2**-6 * expected.abs().max()

    @SIDE
    def test_memory_stays_bounded(self, side_stream: bool) -> None:
        weight = _large("cuda")
        x = torch.randn(2048, 4096, device="cuda").bfloat16()
        _linear(x, weight, 8 * MIB, side_stream)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = _linear(x, weight, 8 * MIB, side_stream)
        most = (2 if side_stream else 1) * 8 * MIB + y.nbytes + MIB
        assert torch.cuda.max_memory_allocated() - before <= most < 4099 * 4096 * 2 + y.nbytes

    @SIDE
    def test_graphs_replay_on_new_data(self, side_stream: bool) -> None:
        weight = _large("cuda")
        x = torch.randn(1024, 4096, device="cuda").bfloat16()
        _linear(x, weight, 8 * MIB, side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = _linear(x, weight, 8 * MIB, side_stream)
            y = y + _linear(x, weight, 8 * MIB, side_stream)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            y.fill_(float("nan"))
            graph.replay()
            expected = _linear(x, weight, 8 * MIB, side_stream)
            assert torch.equal(y, expected + expected)

    @SIDE
    def test_the_current_stream(self, side_stream: bool) -> None:
        weight, stream = _large("cuda"), torch.cuda.Stream()
        x = torch.randn(1024, 4096, device="cuda").bfloat16()
        late, expected = torch.zeros_like(x), _linear(x, weight, 8 * MIB, side_stream)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            y = _linear(late, weight, 8 * MIB, side_stream)
        stream.synchronize()
        assert torch.equal(y, expected)

    def test_the_op_has_it(self) -> None:
        weight = _large("cuda", N=8192)
        x = torch.randn(2, 2048, 4096, device="cuda").bfloat16()
        kernel = next(k for k in int4_linear.kernels if k.name == "cuda:slices")
        args: tuple[Any, ...] = (x, weight.codes, weight.scale, weight.zero, 128, None)
        assert kernel.supports(*args) is None
        y, whole = kernel.run(*args), x @ weight.expected.bfloat16().T
        assert y.shape == (2, 2048, 8192)
        assert (y - whole).abs().max() <= 2**-6 * whole.abs().max()
        assert "bias" in str(kernel.supports(*args[:5], torch.zeros(8192, device="cuda")))

    def _match(
        self, name: str, weight: Weight, shape: tuple[int, ...], dtype: torch.dtype, side: bool
    ) -> None:
        x = torch.randn(shape, device="cuda").to(dtype)
        y = slices.linear(x, *weight[:6], most_bytes=2 * _CHUNK, side_stream=side)
        w = weight.expected.to(dtype).double()
        apart = (y.double() - x.double() @ w.T).abs()
        assert y.dtype == dtype
        assert (apart <= torch.finfo(dtype).eps * (x.double().abs() @ w.abs().T)).all(), name


def _large(device: str, N: int = 4099) -> Weight:
    """int4 in groups of 128, N x 4096."""
    from ao_core.packing import pack
    from ao_kernels.ops import layout

    codes = pack(torch.randint(0, 16, (N, 4096), dtype=torch.uint8), 4)
    scale = (torch.rand(N, 32) / 64).bfloat16()
    expected = layout.dequantize_intx(
        codes, scale, None, bits=4, group_size=128, length=4096, dtype=torch.float32
    )
    return Weight(codes, scale, None, 4, 128, 1, expected).to(device)


def _linear(x: Tensor, weight: Weight, most_bytes: int, side_stream: bool) -> Tensor:
    return slices.linear(x, *weight[:6], most_bytes=most_bytes, side_stream=side_stream)
