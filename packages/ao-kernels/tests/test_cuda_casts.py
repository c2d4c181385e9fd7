"""The CUDA kernels of casts in both directions against the references, bit for bit. What every
kernel of these ops must pass is in test_quantize_*_both.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantize_contract import moved
from quantized_samples import assert_same_bits, every_16_bit_value
from torch import Tensor

from ao_kernels import cuda
from ao_kernels.ops import quantize_block_both, quantize_grouped_both, quantize_rowwise_both

pytestmark = pytest.mark.gpu

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# Parts of tiles of 128 x 128, whole ones, one more than run at once, and bands of 32 tiles.
SHAPES = [(1, 8), (16, 16), (17, 24), (128, 128), (130, 264), (300, 1000), (257, 4096), (40, 8456)]
WHOLE = [(128 * 17, 128 * 16), (256, 128 * 70)]
NUMBERS = [(E4M3, True), (E4M3, False), (E5M2, True), (E5M2, False)]


@pytest.fixture(autouse=True)
def _extension(request: pytest.FixtureRequest) -> None:
    if cuda.unavailable and request.function.__name__ != "test_the_extension_is_there":
        pytest.skip(cuda.unavailable)


def test_the_extension_is_there() -> None:
    assert cuda.unavailable == ""


def values(M: int, K: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Of many sizes, in rows and in columns."""
    generator = torch.Generator().manual_seed(M * K)
    x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
    return (x * torch.logspace(-2, 2, K)).to(dtype)


def calls(x: Tensor) -> Iterator[tuple[Any, ...]]:
    """(op, *args) of every scaling and number that the kernels take."""
    M = x.shape[0]
    for dtype, power in NUMBERS:
        for outputs in ("both", "rows", "columns"):
            if outputs != ("rows" if x.stride(1) == 1 else "columns"):
                yield quantize_rowwise_both, x, dtype, power, outputs
            yield quantize_block_both, x, dtype, 1, 128, power, outputs
            yield quantize_block_both, x, dtype, 128, 128, power, outputs
        if x.stride(1) == 1:
            for ends in (
                [M],
                [0, M // 2, M // 2, M],
                [0, 0],
                [M // 3, 2 * M // 3],
                [M // 3, 2 * M],
            ):
                offsets = torch.tensor(ends, dtype=torch.int32)
                for outputs in ("both", "columns"):
                    yield quantize_grouped_both, x, dtype, offsets, power, outputs


def check(op: Any, *args: Any) -> None:
    there = moved(args, "cuda")
    assert "cuda" not in op.why_not(*there)
    assert_same_bits(
        f"{op.name} {tuple(args[0].shape)} {args[1:]}", op(*there), op.reference(*args)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits(shape: tuple[int, int]) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for op, *args in calls(values(*shape, dtype)):
            check(op, *args)


@pytest.mark.parametrize("shape", WHOLE, ids=str)
def test_whole_tiles(shape: tuple[int, int]) -> None:
    for op, *args in calls(values(*shape)):
        check(op, *args)


def test_transposed_and_strided() -> None:
    wide = values(264, 400)
    for x in (values(136, 304).T, wide[:, 16:144], wide[8:, :200].T):
        for op, *args in calls(x):
            check(op, *args)


def test_small_and_odd_numbers() -> None:
    """Scales below 2**-64, which are lifted, beside others; NaN and inf."""
    x = values(256, 256)
    small = x * torch.logspace(-38, 0, 256)[:, None].bfloat16()
    odd = x.clone()
    odd[3, 5], odd[200, 130] = torch.nan, -torch.inf
    for each in (small, (x.float() * 1e-40).bfloat16(), odd, torch.zeros_like(x)):
        for op, *args in calls(each):
            check(op, *args)


def test_every_value() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = every_16_bit_value(dtype)
        x = x[x.isfinite()].sort().values
        for op, *args in calls(x[: len(x) // 128 * 128].view(-1, 128)):
            check(op, *args)


def test_many_experts() -> None:
    x = values(5000, 264)
    generator = torch.Generator().manual_seed(0)
    for E in (200, 1024):
        ends = torch.randint(0, 5001, (E,), generator=generator).sort().values.int()
        check(quantize_grouped_both, x, E4M3, ends, True, "both")
    assert "1025 experts; the CUDA kernels take up to 1024" in quantize_grouped_both.why_not(
        x.cuda(), E4M3, torch.zeros(1025, dtype=torch.int32, device="cuda"), True, "both"
    ).get("cuda", "")


def test_the_current_stream_and_graphs() -> None:
    """A kernel that starts before the grid in front of it has ended still sees what it left."""
    x = values(1024, 1024)
    for op, *args in calls(x):
        args[1:] = moved(tuple(args[1:]), "cuda")
        late, stream = torch.zeros_like(x, device="cuda"), torch.cuda.Stream()
        wanted = op(x.cuda(), *args[1:])
        op(late, *args[1:])
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(5_000_000)
            late.copy_(x, non_blocking=True)
            found = op(late, *args[1:])
        stream.synchronize()
        assert_same_bits(f"{op.name} in a stream", found, wanted)
    graph, given = torch.cuda.CUDAGraph(), torch.zeros_like(x, device="cuda")
    with torch.cuda.graph(graph):
        made = given * 2
        found = quantize_rowwise_both(made, E4M3, True)
        again = quantize_block_both(made, E4M3, 1, 128)
    for factor in (1, 3):
        given.copy_(x * factor)
        graph.replay()
        doubled = x * factor * 2
        assert_same_bits("a graph", found, quantize_rowwise_both.reference(doubled, E4M3, True))
        wanted = quantize_block_both.reference(doubled, E4M3, 1, 128)
        assert_same_bits("a graph", again, wanted)


def test_what_is_left_to_other_kernels() -> None:
    x = torch.zeros(32, 64, dtype=torch.bfloat16, device="cuda")
    for args, reason in [
        ((x, torch.int8), "codes are torch.int8; the CUDA kernels make float8"),
        ((x.float(), E4M3), "x has dtype torch.float32; the CUDA kernels take bfloat16"),
        ((x[:, :4], E4M3), r"x is not made of pieces of 16 bytes: (32, 4)"),
        ((x[:, ::2], E4M3), "neither the rows nor the columns of x lie in one piece"),
        ((x[None], E4M3), "x is of several matrices"),
        ((x, E4M3, False, "rows"), "rows alone take one pass over x in Triton"),
    ]:
        assert reason in quantize_rowwise_both.why_not(*args)["cuda"]
    for outputs in ("all", None):
        with pytest.raises(ValueError, match=f"outputs is {outputs!r}, not 'both' or 'rows' or"):
            quantize_rowwise_both(x, E4M3, False, outputs)
