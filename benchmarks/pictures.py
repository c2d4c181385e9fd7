"""The pictures of the README, from numbers that are in this repository.

    python3 -m nox -s bench -- pictures

speed_over_tokens        one linear of 14336 x 4096: how many times as fast as bfloat16, by tokens
tokens_against_memory    the 8B Llama shape, batch 1: tokens a second against peak memory

The first reads the table that an H200 dispatches by (ao_kernels/tuned/nvidia-h200.json, written by
``nox -s tune``): at each number of tokens the kernel that a call goes to, and bfloat16 of the same
run. That is the fastest one, except where the CUDA kernel keeps a call without looking at the
table: up to 16 tokens of weight-only formats, all calls that it takes of dynamic ones. The line of
torchao's tinygemm is from the newest rows of benchmarks/results/kernels-nvidia-h200.jsonl
(bench_weight_only_cuda.py), and so is its bfloat16.

The second reads the newest rows of benchmarks/results/nvidia-h200.jsonl (decode_cuda.py), each
format with and without torch.compile where both were recorded.
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
TABLE = ROOT / "packages" / "ao-kernels" / "src" / "ao_kernels" / "tuned" / "nvidia-h200.json"
KERNELS, MODELS = "kernels-nvidia-h200.jsonl", "nvidia-h200.jsonl"
N, K, MODEL, FIGURE = 14336, 4096, "llama-3-8b", "decode 1"
KEPT_TOKENS = 16  # ao_kernels.cuda.weight.FEW_TOKENS
BF16, PEER, PEER_LABEL = "bf16", "tinygemm", "tinygemm (int4 of torchao)"


class Look(NamedTuple):
    """How a format is drawn. Colours of Okabe and Ito, told apart by people who are colour-blind:
    one for each kind of codes; quantized activations are dashed, with open markers."""

    label: str
    color: str
    marker: str
    dashed: bool


# (op, kind of scales) of the table -> how it is drawn; one kind of scales a format.
LOOKS = {
    ("int4_linear", "group 128"): Look("int4 weight-only", "#0072B2", "o", False),
    ("int8_linear", "row"): Look("int8 weight-only", "#D55E00", "s", False),
    ("float8_linear", "row"): Look("float8 weight-only", "#009E73", "^", False),
    ("int8_dynamic_linear", "row"): Look("int8 dynamic", "#D55E00", "s", True),
    ("float8_dynamic_linear", "row"): Look("float8 dynamic", "#009E73", "^", True),
}
GREY, DARK = "0.6", "0.25"
COLORS = {"torch": DARK, "ao": "#0072B2", "torchao": "#D55E00"}


class Point(NamedTuple):
    """A format of the 8B shape."""

    gb: float
    tokens_per_s: float
    library: str


def main() -> int:
    PICTURES.mkdir(exist_ok=True)
    table = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else []
    kernels, models = read(RESULTS / KERNELS), read(RESULTS / MODELS)
    done = [
        save(speed_over_tokens(table, kernels), "speed_over_tokens"),
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


def speedups(table: Iterable[dict[str, Any]]) -> dict[Look, dict[int, float]]:
    """By format, times the speed of bfloat16 by number of tokens."""
    found: dict[Look, dict[int, float]] = {}
    for row in table:
        look = LOOKS.get((row["op"], row["kind"]))
        if look is None or (row["N"], row["K"]) != (N, K):
            continue
        for i, tokens in enumerate(row["tokens"]):
            found.setdefault(look, {})[tokens] = row["us"][BF16][i] / taken_us(row, i)
    return found


def taken_us(row: dict[str, Any], i: int) -> float:
    """Microseconds of the kernel that a call goes to, see the top of this file."""
    times = {name: us[i] for name, us in row["us"].items() if name != BF16 and us[i] is not None}
    kept = "_dynamic_" in row["op"] or row["tokens"][i] <= KEPT_TOKENS
    return times["cuda"] if kept and "cuda" in times else min(times.values())


def peer_speedups(rows: Iterable[dict[str, Any]]) -> dict[int, float]:
    """The same of tinygemm; later rows replace earlier."""
    found = {}
    for row in rows:
        case = re.fullmatch(rf"int4 {N}x{K} M=(\d+)", row["case"])
        if row["benchmark"] == "weight_only_linear" and case and PEER in row["us"]:
            found[int(case[1])] = row["us"][BF16][0] / row["us"][PEER][0]
    return found


def speed_over_tokens(table: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Figure | None:
    found, peer = speedups(table), peer_speedups(rows)
    if not found:
        return None
    figure, axes = canvas()
    ends = []
    if peer:
        axes.plot(*zip(*sorted(peer.items()), strict=True), color=GREY, linewidth=1)
        ends.append((max(peer), peer[max(peer)], PEER_LABEL, GREY))
    for look, values in sorted(found.items()):
        tokens = sorted(values)
        axes.plot(
            tokens,
            [values[m] for m in tokens],
            color=look.color,
            marker=look.marker,
            markersize=5,
            markerfacecolor="white" if look.dashed else look.color,
            linestyle="--" if look.dashed else "-",
        )
        ends.append((tokens[-1], values[tokens[-1]], look.label, look.color))
    every = sorted({m for values in found.values() for m in values})
    shown = [m for m in every if m & (m - 1) == 0]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(m) for m in shown])
    axes.minorticks_off()
    # Room for the labels: a quarter of the width.
    axes.set_xlim(every[0] / 1.2, every[-1] * max(2, every[-1] / every[0]) ** 0.36)
    axes.set_ylim(0, 1.1 * max(v for values in found.values() for v in values.values()))
    axes.axhline(1, color=DARK, linewidth=1)
    axes.axhspan(0, 1, color="0.95", zorder=0)
    axes.annotate("bf16 is faster", (every[0], 0), (0, 5), textcoords="offset points", color=DARK)
    annotate(axes, ends)
    axes.set_xlabel("tokens")
    axes.set_title(f"Linear of {N} x {K} on an H200: times the speed of bf16")
    return figure


# --- tokens against memory


def points(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, bool], Point]:
    """The newest point of every format, and whether its steps were compiled."""
    found: dict[tuple[str, bool], Point] = {}
    for each in rows:
        row, settings = each["row"], each["settings"]
        if (
            each["benchmark"] != "decode_cuda"
            or settings["shape"] != MODEL
            or settings["layers"] is not None
            or row["figure"] != FIGURE
        ):
            continue
        compiled = settings["compile"] != "none"
        bf16, own = row["bf16_tokens_per_s"]["median"], row["tokens_per_s"]["median"]
        found[BF16, compiled] = Point(row["bf16_peak_gb"], bf16, "torch")
        found[row["format"], compiled] = Point(row["peak_gb"], own, row["library"])
    return found


def tokens_against_memory(rows: list[dict[str, Any]]) -> Figure | None:
    found = points(rows)
    if not found:
        return None
    figure, axes = canvas()
    ends = []
    for (name, compiled), point in found.items():
        color = COLORS[point.library]
        face = color if compiled else "white"
        axes.plot(
            point.gb, point.tokens_per_s, "o", color=color, markerfacecolor=face, markersize=8
        )
        label = f"{name}, compiled" if compiled else name
        ends.append((point.gb, point.tokens_per_s, label, color))
    axes.set_xlim(0, 1.28 * max(point.gb for point in found.values()))
    axes.set_ylim(0, 1.15 * max(point.tokens_per_s for point in found.values()))
    annotate(axes, ends)
    axes.set_xlabel("peak memory, GB")
    axes.set_title("Llama-3-8B shape on an H200, batch 1, CUDA graph: tokens a second")
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
