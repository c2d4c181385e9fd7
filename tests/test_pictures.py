"""The pictures of the README are built from recorded rows: here from a few made-up ones."""

from __future__ import annotations

import importlib.util
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

DATE = "2026-01-{:02}T00:00:00+00:00"
DECODE = {
    "int4 g128": (4.9, 400, "ao"),
    "int4 g128, bf16 head": (5.7, 380, "ao"),
    "int8 weight-only": (8.6, 330, "ao"),
    "float8 weight-only": (8.6, 330, "ao"),
    "float8 dynamic": (8.6, 328, "ao"),
    "torchao int4 g128": (5.0, 300, "torchao"),
}


@pytest.fixture(scope="module")
def pictures(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("pictures", root / "benchmarks" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_row(benchmark: str, case: str, day: int = 1, **us: float) -> dict[str, Any]:
    times = {name: [median, median, median] for name, median in us.items()}
    return {"benchmark": benchmark, "date": DATE.format(day), "case": case, "us": times}


def kernel_rows() -> list[dict[str, Any]]:
    tokens = (1, 16, 256, 4096)
    rows = [kernel_row("quantize_rowwise", "14336x4096 e4m3", ours=1, torch=2)]
    for m in tokens:
        rows += [
            kernel_row("weight_only_linear", f"int4 4096x4096 M={m}", ours=9, bf16=1),
            kernel_row(
                "weight_only_linear", f"int4 14336x4096 M={m}", ours=12, bf16=30, tinygemm=20
            ),
            kernel_row("weight_only_linear", f"int8 14336x4096 M={m}", ours=16, bf16=32),
            kernel_row("float8_linear", f"14336x4096 row M={m}", ours=16, bfloat16=32),
            kernel_row("float8_linear", f"14336x4096 block M={m}", ours=99, bfloat16=32),
            kernel_row("float8_dynamic_linear", f"14336x4096 row M={m}", ours=16, bfloat16=32.5),
            kernel_row("float8_dynamic_linear", f"14336x4096 tensor M={m}", ours=99, bfloat16=32),
        ]
    rows.append(kernel_row("weight_only_linear", "int4 14336x4096 M=1", 2, ours=10, bf16=30))
    return rows


def decode_row(name: str, day: int = 1, compiled: str = "layers", **change: Any) -> dict[str, Any]:
    gb, speed, library = DECODE[name]
    row = {
        "format": name,
        "library": library,
        "figure": "decode 1",
        "tokens_per_s": {"median": speed},
        "bf16_tokens_per_s": {"median": 160 + day},
        "peak_gb": gb,
        "bf16_peak_gb": 16.1,
    }
    settings = {"shape": "llama-3-8b", "layers": None, "compile": compiled}
    settings |= {key: change.pop(key) for key in list(change) if key in settings}
    common = {"benchmark": "decode_cuda", "date": DATE.format(day), "settings": settings}
    return {**common, "row": {**row, **change}}


def decode_rows() -> list[dict[str, Any]]:
    wrong = {"tokens_per_s": {"median": 9999}}
    return [
        decode_row("int4 g128", compiled="none", **wrong),
        decode_row("int4 g128", **wrong),
        decode_row("int4 g128", shape="tiny", **wrong),
        decode_row("int4 g128", layers=2, **wrong),
        decode_row("int4 g128", figure="decode 16", **wrong),
        *(decode_row(name, 2) for name in DECODE),
    ]


def test_speedups_are_the_newest_of_the_large_layer(pictures: Any) -> None:
    found = pictures.speedups(kernel_rows())
    assert sorted(found) == [
        "float8 dynamic",
        "float8 weight-only",
        "int4 weight-only",
        "int8 weight-only",
        "torch's tinygemm (int4)",
    ]
    assert found["int4 weight-only"] == {1: 3.0, 16: 2.5, 256: 2.5, 4096: 2.5}
    assert found["torch's tinygemm (int4)"][1] == 1.5
    assert found["float8 weight-only"][4096] == 2.0
    assert found["float8 dynamic"][4096] == 32.5 / 16


def test_points_are_the_newest_compiled_alike(pictures: Any) -> None:
    found, compiled = pictures.points(decode_rows())
    assert compiled == "layers"
    assert {name: (p.gb, p.tokens_per_s, p.library) for name, p in found.items()} == {
        "bf16": (16.1, 162, "torch"),
        **DECODE,
    }


def test_nothing_recorded_makes_no_picture(pictures: Any, tmp_path: Path) -> None:
    assert pictures.read(tmp_path / "absent.jsonl") == []
    assert pictures.speed_over_tokens([]) is None
    assert pictures.tokens_against_memory([]) is None


@pytest.mark.parametrize("name", ["speed_over_tokens", "tokens_against_memory"])
def test_labels_lie_inside_and_apart(pictures: Any, name: str, tmp_path: Path) -> None:
    from matplotlib.text import Annotation, Text

    rows = kernel_rows() if name == "speed_over_tokens" else decode_rows()
    figure = getattr(pictures, name)(rows)
    path = tmp_path / "picture.png"
    figure.savefig(path, dpi=100)
    assert path.read_bytes().startswith(b"\x89PNG")
    labels = [t for t in figure.axes[0].texts if isinstance(t, Annotation)]
    expected = 6 if name == "speed_over_tokens" else len(DECODE) + 1
    assert len(labels) == expected
    boxes = {label.get_text(): Text.get_window_extent(label) for label in labels}  # no arrows
    for text, box in boxes.items():
        assert box.x0 > 0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1, text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one} covers {other}"
