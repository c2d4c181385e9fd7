"""The README's table of a Llama on a GPU, from recorded rows of decode_cuda.py: in Markdown.

    python benchmarks/decode_table.py

Tokens a second, and in brackets times those of bfloat16 in the same rounds; GB are the peak of
batch 1, and in brackets the share of bfloat16's. Each cell is of the newest row that has it; one
table for eager steps in a CUDA graph, one for compiled ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import pictures

FIGURES = ("decode 1", "decode 16", "decode 64", "prefill 4096")


def main() -> int:
    rows = pictures.read(pictures.RESULTS / pictures.MODELS)
    tables = [table(rows, compiled=compiled) for compiled in (False, True)]
    if not any(tables):
        print(f"no row of {pictures.MODEL} in {pictures.RESULTS / pictures.MODELS}")
        return 1
    print("\n".join(each for each in tables if each))
    return 0


def table(rows: Iterable[dict[str, Any]], *, compiled: bool) -> str:
    """The formats in the order of their first rows, ours before those of others; "" of no rows."""
    found: dict[tuple[bool, str], dict[str, dict[str, Any]]] = {}
    for each in sorted(rows, key=lambda row: row["date"]):
        if each["benchmark"] != "decode_cuda":
            continue
        settings, row = each["settings"], each["row"]
        whole = settings["shape"] == pictures.MODEL and settings["layers"] is None
        if whole and (settings["compile"] != "none") == compiled and row["figure"] in FIGURES:
            key = (row["library"] != "ao", row["format"])
            found.setdefault(key, {})[row["figure"]] = row
    if not found:
        return ""
    how = "compiled step" if compiled else "eager step"
    lines = [f"| {how} | {' | '.join(FIGURES)} | GB |", "|---" * (len(FIGURES) + 2) + "|"]
    newest = {figure: of[figure] for of in found.values() for figure in FIGURES if figure in of}
    dense = [_cell(newest.get(figure, {}).get("bf16_tokens_per_s")) for figure in FIGURES]
    first = newest.get("decode 1")
    lines.append(f"| bf16 | {' | '.join(dense)} | {first['bf16_peak_gb']:.1f} |" if first else "")
    for (_, name), of in sorted(found.items(), key=lambda item: item[0][0]):
        cells = [
            _cell(of[f]["tokens_per_s"], of[f]["bf16_tokens_per_s"]) if f in of else ""
            for f in FIGURES
        ]
        one = of.get("decode 1")
        share = one and one["peak_gb"] / one["bf16_peak_gb"]
        cells.append(f"{one['peak_gb']:.1f} ({share:.2f})" if one else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(line for line in lines if line) + "\n"


def _cell(speed: dict[str, float] | None, dense: dict[str, float] | None = None) -> str:
    if speed is None:
        return ""
    words = f"{speed['median']:.0f}"
    return words if dense is None else f"{words} ({speed['median'] / dense['median']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
