"""How the end-to-end benchmarks measure, print and record.

Sides are timed in one process, in alternating order. Reported is the median of the rounds with
their spread, and a difference below the spread is noise. A record in benchmarks/results names the
machine by its processor, or by its GPU for what ran there, with date, commit and versions; there is
one file a kind of machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("AO_RESULTS", ROOT / "benchmarks" / "results"))
ISAS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "i8mm", "bf16")
PACKAGES = ("torch", "transformers", "ao-core", "ao-kernels", "ao-quant", "ao-hf", "xllamacpp")
GPU_PACKAGES = ("triton", "torchao")


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        """The median, with the half width of the spread in percent: `43.1 ±2%`."""
        half = 50 * (self.high - self.low) / self.median if self.median else 0.0
        return f"{self.median:{spec}} ±{half:.0f}%"


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, Spread]:
    """Calls every side once a round, in turn, backwards in every second round.

    A side gives its own figure (seconds, tokens a second); its first call is thrown away.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for index in range(rounds):
        names = list(sides) if index % 2 == 0 else list(sides)[::-1]
        for name in names:
            found[name].append(sides[name]())
    return {name: Spread.of(values) for name, values in found.items()}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, and the GPU if `device` is one; never a host's name."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    cpu = facts.get("model name", platform.processor() or platform.machine())
    if "cpu family" in facts:
        cpu += f" family {facts['cpu family']} model {facts['model']}"
    found = {
        "cpu": cpu,
        "isa": [isa for isa in ISAS if isa in flags],
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        import torch

        found = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **found}
    return found


def versions(device: str = "cpu") -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES + (GPU_PACKAGES if device == "cuda" else ()):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The short hash of HEAD, marked when packages or benchmarks differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "packages"], capture_output=True, text=True
    )
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "") or "unknown"


def record(
    benchmark: str, rows: list[dict[str, Any]], *, device: str = "cpu", **settings: Any
) -> Path:
    """Appends one line a row to the file of this machine and gives its path."""
    here = machine(device)
    name = here.get("gpu") or f"{here['cpu']} {here['cores']} cores"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = RESULTS / f"{slug}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": here,
        "versions": versions(device),
        "settings": settings,
    }
    with path.open("a") as file:
        for row in rows:
            plain = {key: v.__dict__ if isinstance(v, Spread) else v for key, v in row.items()}
            file.write(json.dumps({**common, "row": plain}) + "\n")
    return path


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table whose columns line up; the first column is text, the others are figures."""
    columns = list(rows[0])
    width = {c: max(len(c), *(len(str(row.get(c, ""))) for row in rows)) for c in columns}

    def line(cells: list[str]) -> str:
        padded = [cell.rjust(width[c]) for c, cell in zip(columns, cells, strict=True)]
        return f"| {' | '.join([cells[0].ljust(width[columns[0]]), *padded[1:]])} |"

    rule = "|".join("-" * (width[c] + 1) + ":" for c in columns).replace(":", "-", 1)
    body = [line([str(row.get(c, "")) for c in columns]) for row in rows]
    return "\n".join([line(columns), f"|{rule}|", *body])
