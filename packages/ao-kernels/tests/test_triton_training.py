"""The Triton kernels of training, compiled for absent GPUs: the interpreter runs what the compiler
refuses."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from matmul_samples import E4M3, E5M2, operand
from triton_compilation import ARCHITECTURES, compiled_launches

from ao_kernels.ops import quantize_grouped_both, quantize_rowwise_both

OFFSETS = torch.tensor([5, 5, 40], dtype=torch.int32)


def casts() -> Iterator[tuple[str, list[tuple[Any, ...]], set[str]]]:
    """Op, calls and kernels."""
    x, odd = torch.zeros(256, 512).bfloat16(), torch.zeros(17, 33)
    yield (
        "quantize_tensorwise_both",
        [
            (x, E4M3, None, False, "both"),
            (odd, E5M2, None, True, "columns"),
            (x, torch.int8, torch.ones(()), False, "both"),
            (x, E4M3, torch.ones(()), False, "both"),
        ],
        {"_peaks", "_quantize_tiles"},
    )
    yield (
        "quantize_rowwise_both",
        [
            (x, E4M3, False, "both"),
            (odd.T, torch.int8, True, "both"),
            (x, E5M2, True, "rows"),
            (x, E5M2, True, "columns"),
        ],
        {"_peaks", "_scales", "_quantize_tiles", "_quantize_blocks"},
    )
    yield (
        "quantize_block_both",
        [(x, E4M3, 1, 128, False, "both"), (odd, E5M2, 128, 128, True, "both")],
        {"_quantize_tiles"},
    )
    yield "quantize_mx", [(x, E4M3, "both"), (odd, E5M2, "rows")], {"_quantize_mx_tiles"}
    yield (
        "quantize_grouped_both",
        [(x, E4M3, OFFSETS, False, "both")],
        {"_quantize_blocks", "_places", "_column_peaks", "_scales", "_quantize_places"},
    )


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("op", "calls", "names"), [pytest.param(*cast, id=cast[0]) for cast in casts()]
)
def test_casts_compile(
    op: str,
    calls: list[tuple[Any, ...]],
    names: set[str],
    architecture: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = list(compiled_launches(op, calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} == names
    for launch in launches:
        assert launch.shared_bytes <= 32 << 10, "more than a tile goes through shared memory"
        assert not launch.inexact_arithmetic()
        if architecture == 90:
            assert not launch.stack_pointers_as_data()
            assert not launch.registers_never_set()
        if "tiles" in launch.name or launch.name == "_quantize_places":
            assert "st.global.v4.b32" in launch.ptx, "codes are not stored in wide pieces"
            # of scales; an element has 16 instructions at the bandwidth of memory, a division 24
            assert launch.ptx.count("div.rn.f32") <= 32, "elements are divided"
    converting = [launch for launch in launches if "cvt.rn.satfinite.e" in launch.ptx]
    assert bool(converting) == (architecture >= 89)


@pytest.mark.triton
@pytest.mark.parametrize("shape", [(3, 1), (1, 3)], ids=str)
def test_one_column_is_converted_like_many(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(shape).bfloat16()
    for op, calls in (
        ("quantize_rowwise_both", [(x, E4M3, False, "both")]),
        ("quantize_tensorwise_both", [(x.float(), E4M3, None, False, "both")]),
        ("quantize_block_both", [(x, E4M3, 1, 128, False, "both")]),
        ("quantize_mx", [(x, E4M3, "both")]),
    ):
        for launch in compiled_launches(op, calls, 90, monkeypatch):
            assert not launch.registers_never_set(), op


def products() -> Iterator[tuple[str, list[tuple[Any, ...]], set[str]]]:
    """The kernels of our own, beside the library's products."""
    x, w = torch.randn(256, 512), torch.randn(128, 512)
    calls = [
        (*operand(x, kinds[0], a), *operand(w, kinds[1], E4M3), None, None, False)
        for kinds in (("tensor", "tensor"), ("row", "row"), ("1x128", "128x128"))
        for a in (E4M3, E5M2)
    ]
    yield "float8_matmul", calls, {"_float8_product", "_finish"}
    a, a_scale, at, at_scale, ends = quantize_grouped_both(x, E4M3, OFFSETS)
    b, b_scale, *_ = quantize_rowwise_both(torch.randn(3, 128, 512), E4M3)
    args = (a, a_scale, b, b_scale, OFFSETS, None, False)
    yield "float8_grouped_matmul", [args], {"_grouped_product", "_finish"}
    g, g_scale = quantize_grouped_both(x[:, :128], E5M2, OFFSETS)[2:4]
    yield (
        "float8_grouped_wgrad",
        [(g, g_scale, at, at_scale, ends, None, False)],
        {"_grouped_wgrad"},
    )
    a, a_scale, *_ = quantize_rowwise_both(x, torch.int8)
    b, b_scale, *_ = quantize_rowwise_both(w, torch.int8)
    yield "int8_matmul", [(a, a_scale, b, b_scale, None, None)], {"_int8_linear", "_finish"}


@pytest.mark.triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("op", "calls", "names"), [pytest.param(*product, id=product[0]) for product in products()]
)
def test_products_compile(
    op: str,
    calls: list[tuple[Any, ...]],
    names: set[str],
    architecture: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = list(compiled_launches(op, calls, architecture, monkeypatch))
    assert {launch.name for launch in launches} <= names
    for launch in launches:
        assert launch.shared_bytes <= 160 << 10
    multiplied = [launch.ptx for launch in launches if launch.name != "_finish"]
    matrix = "wgmma" if architecture == 90 else "mma.sync"
    assert multiplied and all(matrix in ptx for ptx in multiplied)
    if architecture == 90 and op != "int8_matmul":
        assert all("e4m3" in ptx for ptx in multiplied), "codes are widened before they multiply"
