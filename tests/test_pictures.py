"""The pictures of the README are built from recorded numbers: here from a few made-up ones."""

from __future__ import annotations

import importlib.util
import json
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


TOKENS = (1, 16, 17, 256, 4096)


def table_row(op: str, kind: str, N: int = 14336, **us: float | None) -> dict[str, Any]:
    times = {name: [time] * len(TOKENS) for name, time in us.items()}
    return {"op": op, "kind": kind, "N": N, "K": 4096, "tokens": list(TOKENS), "us": times}


def table() -> list[dict[str, Any]]:
    large = [
        table_row("int4_linear", "group 128", bf16=30, cuda=20, triton=10),
        table_row("int8_linear", "row", bf16=32, cuda=None, dequantize=16),
        table_row("float8_linear", "row", bf16=32, cuda=16.1),
        table_row("int8_dynamic_linear", "row", bf16=32, cuda=20),
        table_row("float8_dynamic_linear", "row", bf16=32, cuda=20.2, library=20),
        table_row("float8_dynamic_linear", "tensor", bf16=32, cuda=99),
    ]
    large[0]["us"]["triton"][-1] = 40
    large[4]["us"]["cuda"][-1] = None
    return [*large, table_row("int4_linear", "group 128", N=4096, bf16=1, cuda=9)]


def kernel_row(benchmark: str, case: str, day: int = 1, **us: float) -> dict[str, Any]:
    times = {name: [median, median, median] for name, median in us.items()}
    return {"benchmark": benchmark, "date": DATE.format(day), "case": case, "us": times}


def kernel_rows() -> list[dict[str, Any]]:
    return [
        kernel_row("quantize_rowwise", "14336x4096 e4m3", ours=1, torch=2),
        kernel_row("weight_only_linear", "int4 4096x4096 M=1", ours=9, bf16=1, tinygemm=1),
        kernel_row("weight_only_linear", "int8 14336x4096 M=1", ours=9, bf16=1),
        kernel_row("weight_only_linear", "int4 14336x4096 M=1", ours=9, bf16=30, tinygemm=30),
        kernel_row("weight_only_linear", "int4 14336x4096 M=256", ours=9, bf16=40, tinygemm=400),
        kernel_row("weight_only_linear", "int4 14336x4096 M=1024", ours=9, bf16=40),
        kernel_row("weight_only_linear", "int4 14336x4096 M=1", 2, ours=9, bf16=30, tinygemm=20),
    ]


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
        decode_row("int4 g128", compiled="none", tokens_per_s={"median": 200}),
        decode_row("int4 g128", **wrong),
        decode_row("int4 g128", shape="tiny", **wrong),
        decode_row("int4 g128", layers=2, **wrong),
        decode_row("int4 g128", figure="decode 16", **wrong),
        *(decode_row(name, 2) for name in DECODE),
    ]


def test_speedups_are_of_the_kernel_that_takes_the_call(pictures: Any) -> None:
    found = {look.label: values for look, values in pictures.speedups(table()).items()}
    assert sorted(found) == [
        "float8 dynamic",
        "float8 weight-only",
        "int4 weight-only",
        "int8 dynamic",
        "int8 weight-only",
    ]
    assert found["int4 weight-only"] == {1: 1.5, 16: 1.5, 17: 3.0, 256: 3.0, 4096: 1.5}
    assert found["int8 weight-only"] == dict.fromkeys(TOKENS, 2.0)
    assert found["float8 dynamic"] == {**dict.fromkeys(TOKENS, 32 / 20.2), 4096: 1.6}


def test_the_peer_is_the_newest_of_the_large_layer(pictures: Any) -> None:
    assert pictures.peer_speedups(kernel_rows()) == {1: 1.5, 256: 0.1}


def test_every_format_is_in_the_table(pictures: Any) -> None:
    rows = json.loads(pictures.TABLE.read_text())["rows"]
    assert set(pictures.speedups(rows)) == set(pictures.LOOKS.values())


def test_points_are_the_newest_compiled_and_not(pictures: Any) -> None:
    found = pictures.points(decode_rows())
    values = {key: (p.gb, p.tokens_per_s, p.library) for key, p in found.items()}
    assert values == {
        ("bf16", False): (16.1, 161, "torch"),
        ("int4 g128", False): (4.9, 200, "ao"),
        ("bf16", True): (16.1, 162, "torch"),
        **{(name, True): point for name, point in DECODE.items()},
    }


def test_nothing_recorded_makes_no_picture(pictures: Any, tmp_path: Path) -> None:
    assert pictures.read(tmp_path / "absent.jsonl") == []
    assert pictures.speed_over_tokens([], kernel_rows()) is None
    assert pictures.tokens_against_memory([]) is None


@pytest.mark.parametrize("name", ["speed_over_tokens", "tokens_against_memory"])
def test_labels_lie_inside_and_apart(pictures: Any, name: str, tmp_path: Path) -> None:
    from matplotlib.text import Annotation, Text

    over_tokens = name == "speed_over_tokens"
    rows = (table(), kernel_rows()) if over_tokens else (decode_rows(),)
    figure = getattr(pictures, name)(*rows)
    path = tmp_path / "picture.png"
    figure.savefig(path, dpi=100)
    assert path.read_bytes().startswith(b"\x89PNG")
    labels = [t for t in figure.axes[0].texts if isinstance(t, Annotation)]
    expected = 7 if over_tokens else len(DECODE) + 3
    assert len(labels) == expected
    boxes = {label.get_text(): Text.get_window_extent(label) for label in labels}  # no arrows
    for text, box in boxes.items():
        assert box.x0 > 0 and box.x1 < figure.bbox.x1 and box.y1 < figure.bbox.y1, text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), f"{one} covers {other}"
