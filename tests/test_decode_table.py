"""The README's table of decoding is built from recorded numbers: here from a few made-up ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def decode_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("decode_table")


def recorded(name: str, figure: str, speed: float, day: int = 1, **change: Any) -> dict[str, Any]:
    settings = {"shape": "llama-3-8b", "layers": None, "compile": "none"}
    settings |= {key: value for key, value in change.items() if key in settings}
    row = {
        "format": name,
        "library": "torchao" if name.startswith("torchao") else "ao",
        "figure": figure,
        "tokens_per_s": {"median": speed},
        "bf16_tokens_per_s": {"median": 100.0 + day},
        "peak_gb": 4.0,
        "bf16_peak_gb": 16.0,
    }
    date = f"2026-01-{day:02}T00:00:00+00:00"
    benchmark = change.get("benchmark", "decode_cuda")
    return {"benchmark": benchmark, "date": date, "settings": settings, "row": row}


def test_cells_are_of_the_newest_rows(decode_table: ModuleType) -> None:
    rows = [
        recorded("torchao int4", "decode 1", 50.5),
        recorded("int4", "decode 1", 204.0, 2),
        recorded("int4", "decode 1", 999.0),
        recorded("int4", "prefill 4096", 90.9),
        recorded("int4", "decode 2", 999.0, 3),
        recorded("int4", "decode 16", 999.0, 3, shape="tiny"),
        recorded("int4", "decode 16", 999.0, 3, layers=2),
        recorded("int4", "decode 16", 999.0, 3, compile="step"),
        recorded("int4", "decode 16", 999.0, 3, benchmark="another"),
    ]
    head, _, *lines = decode_table.table(rows, compiled=False).splitlines()
    assert head == "| eager step | decode 1 | decode 16 | decode 64 | prefill 4096 | GB |"
    assert lines[1:] == [
        "| int4 | 204 (2.00) |  |  | 91 (0.90) | 4.0 (0.25) |",
        "| torchao int4 | 50 (0.50) |  |  |  | 4.0 (0.25) |",
    ]
    assert lines[0].startswith("| bf16 | 10") and lines[0].endswith("|  |  | 101 | 16.0 |")
    compiled = decode_table.table(rows, compiled=True).splitlines()
    assert compiled[-1] == "| int4 |  | 999 (9.70) |  |  |  |"


def test_nothing_recorded_is_no_table(decode_table: ModuleType) -> None:
    assert decode_table.table([], compiled=False) == ""
