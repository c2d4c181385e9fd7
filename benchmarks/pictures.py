"""The pictures of the README, from the newest rows in benchmarks/results.

    python3 -m nox -s bench -- pictures

speed_over_tokens        one linear of 14336 x 4096: how many times as fast as bfloat16, by tokens
tokens_against_memory    the 8B Llama shape, batch 1: tokens a second against peak memory
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"
KERNELS, MODELS = "kernels-nvidia-h200.jsonl", "nvidia-h200.jsonl"
SHAPE, MODEL, FIGURE = "14336x4096", "llama-3-8b", "decode 1"

# Benchmark of kernels -> what its rows show; one scale a row, where there is a choice.
LABELS = {
    "weight_only_linear": "{} weight-only",
    "float8_linear": "float8 weight-only",
    "float8_dynamic_linear": "float8 dynamic",
    "int8_dynamic_linear": "int8 dynamic",
    "float8_int4_linear": "float8 x int4",
}
PEER, PEER_LABEL = "tinygemm", "torch's tinygemm (int4)"
# Okabe and Ito: told apart by people who are colour-blind, as are the markers.
STYLES = [
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
]
GREY, DARK = "0.55", "0.25"


class Point(NamedTuple):
    """A format of the 8B shape."""

    gb: float
    tokens_per_s: float
    library: str


def main() -> int:
    PICTURES.mkdir(exist_ok=True)
    kernels, models = read(RESULTS / KERNELS), read(RESULTS / MODELS)
    done = [
        save(speed_over_tokens(kernels), "speed_over_tokens"),
        save(tokens_against_memory(models), "tokens_against_memory"),
    ]
    return 0 if all(done) else 1


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, oldest first; none where nothing was recorded."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["date"])


def save(figure: Figure | None, name: str) -> bool:
    if figure is None:
        print(f"{name}: nothing recorded yet; no picture made")
        return False
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=200, metadata={"Software": None})
    print(path.relative_to(ROOT))
    return True


# --- speed over tokens


def speedups(rows: Iterable[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """By format, times the speed of bfloat16 by number of tokens; later rows replace earlier."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        case = re.fullmatch(rf"(?:(\w+) )?{SHAPE}(?: (?!tensor|block)\w+)? M=(\d+)", row["case"])
        if row["benchmark"] not in LABELS or case is None:
            continue
        times = {name: us[0] for name, us in row["us"].items()}
        base = times.get("bf16") or times["bfloat16"]
        label, tokens = LABELS[row["benchmark"]].format(case[1]), int(case[2])
        found.setdefault(label, {})[tokens] = base / times["ours"]
        if PEER in times:
            found.setdefault(PEER_LABEL, {})[tokens] = base / times[PEER]
    return found


def speed_over_tokens(rows: list[dict[str, Any]]) -> Figure | None:
    found = speedups(rows)
    if not found:
        return None
    figure, axes = canvas()
    styles = iter(STYLES)
    ends = []
    for label in sorted(found, key=lambda name: (name == PEER_LABEL, name)):
        peer = label == PEER_LABEL
        color, marker = (GREY, ".") if peer else next(styles)
        tokens = sorted(found[label])
        values = [found[label][m] for m in tokens]
        axes.plot(tokens, values, color=color, marker=marker, linestyle=":" if peer else "-")
        ends.append((tokens[-1], values[-1], label, color))
    every = sorted({m for each in found.values() for m in each})
    axes.axhline(1, color=DARK, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(m) for m in every])
    axes.minorticks_off()
    # Room for the labels: a quarter of the width.
    axes.set_xlim(every[0] / 1.2, every[-1] * max(2, every[-1] / every[0]) ** 0.36)
    axes.set_ylim(0, 1.15 * max(v for each in found.values() for v in each.values()))
    axes.annotate("bf16", (every[0], 1), (0, 3), textcoords="offset points", color=DARK)
    annotate(axes, ends)
    axes.set_xlabel("tokens")
    axes.set_title(f"Linear of {SHAPE.replace('x', ' x ')} on an H200: times the speed of bf16")
    return figure


# --- tokens against memory


def points(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Point], str]:
    """The newest point of every format, and how the steps were compiled: as in the newest row."""
    rows = [
        row
        for row in rows
        if row["benchmark"] == "decode_cuda"
        and row["settings"]["shape"] == MODEL
        and row["settings"]["layers"] is None
        and row["row"]["figure"] == FIGURE
    ]
    compiled = rows[-1]["settings"]["compile"] if rows else ""
    found: dict[str, Point] = {}
    for each in rows:
        row = each["row"]
        if each["settings"]["compile"] == compiled:
            bf16, own = row["bf16_tokens_per_s"]["median"], row["tokens_per_s"]["median"]
            found["bf16"] = Point(row["bf16_peak_gb"], bf16, "torch")
            found[row["format"]] = Point(row["peak_gb"], own, row["library"])
    return found, compiled


def tokens_against_memory(rows: list[dict[str, Any]]) -> Figure | None:
    found, compiled = points(rows)
    if not found:
        return None
    figure, axes = canvas()
    looks = {"torch": (DARK, "o"), "ao": (STYLES[0][0], "o"), "torchao": (STYLES[1][0], "s")}
    ends = []
    for name, point in found.items():
        color, marker = looks[point.library]
        axes.plot(point.gb, point.tokens_per_s, marker, color=color, markersize=8)
        ends.append((point.gb, point.tokens_per_s, name, color))
    axes.set_xlim(0, 1.2 * max(point.gb for point in found.values()))
    axes.set_ylim(0, 1.15 * max(point.tokens_per_s for point in found.values()))
    annotate(axes, ends)
    axes.set_xlabel("peak memory, GB")
    how = "a CUDA graph" if compiled == "none" else "compiled, in a CUDA graph"
    axes.set_title(f"Llama-3-8B shape on an H200, batch 1, {how}: tokens a second")
    return figure


# --- both


def canvas() -> tuple[Figure, Axes]:
    """800 x 450 pixels at 100 dots an inch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10.5, "axes.titlesize": 11.5})
    figure = plt.figure(figsize=(8, 4.5))
    axes = figure.add_axes((0.06, 0.12, 0.92, 0.79))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    return figure, axes


def annotate(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Labels (x, y, text, color) right of their points; moved up, with a line, where two would
    cover each other. The limits of the axes are final."""
    taken: list[tuple[float, float, float]] = []  # left, right, middle; in points of 1/72 inch
    scale = 72 / axes.figure.dpi
    for x, y, text, color in sorted(ends, key=lambda end: end[1]):
        left, middle = (scale * v for v in axes.transData.transform((x, y)))
        left, start = left + 14, middle
        middle = max(middle, scale * axes.bbox.y0 + 9)  # above the axis
        right = left + 5.8 * len(text)
        while any(left < r and right > m and abs(middle - y) < 13 for m, r, y in taken):
            middle += 1
        taken.append((left, right, middle))
        line = {"arrowstyle": "-", "color": color, "lw": 0.6, "relpos": (0, 0.5)}
        axes.annotate(
            text,
            (x, y),
            (14, middle - start),
            textcoords="offset points",
            va="center",
            color=color,
            arrowprops=line if middle - start > 4 else None,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )


if __name__ == "__main__":
    sys.exit(main())
