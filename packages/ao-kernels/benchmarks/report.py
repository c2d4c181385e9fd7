"""What every benchmark of this folder reports: its options, medians with their spread, one line a
case, and a JSON lines row."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch


@dataclass(frozen=True)
class Times:
    """Microseconds a call."""

    median: float
    low: float
    high: float


def summary(values: list[float]) -> Times:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Times(
        median=ordered[last // 2], low=ordered[round(last * 0.1)], high=ordered[round(last * 0.9)]
    )


def check_close(name: str, y: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Raises when a side computes something else than the float32 result: relative error of the
    whole tensor."""
    error = (y.float() - expected.float()).norm() / expected.float().norm()
    if not error < tolerance:
        raise AssertionError(f"{name}: relative error {error:.3g} exceeds {tolerance:.3g}")


class Report:
    """Prints one line a case and appends it to a JSON lines file."""

    def __init__(self, benchmark: str, out: str | None, machine: str) -> None:
        self._out = Path(out) if out else None
        self._common = {
            "benchmark": benchmark,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine,
            "torch": torch.__version__,
        }
        print(f"{benchmark}: {machine}, torch {torch.__version__}")

    def line(
        self, case: str, times: dict[str, Times], limit_us: float, limit: str, **others: object
    ) -> None:
        """``times`` has "ours"; ``limit`` says what the limit was counted from; ``others`` are more
        entries of the row."""
        ours, digits = times["ours"].median, 1 if times["ours"].median < 100 else 0
        cells = [
            f"{name} {t.median:.{digits}f} [{t.low:.{digits}f}..{t.high:.{digits}f}]"
            for name, t in times.items()
        ]
        ratios = [f"{t.median / ours:.2f}x {name}" for name, t in times.items() if name != "ours"]
        print(
            f"{case:28s} {'  '.join(cells)} us | limit {limit_us:.{digits}f} us ({limit}), share "
            f"{limit_us / ours:.2f} | {', '.join(ratios)}",
            flush=True,
        )
        if self._out:
            row = {
                **self._common,
                "case": case,
                "limit_us": limit_us,
                "share": limit_us / ours,
                **others,
                "us": {name: [t.median, t.low, t.high] for name, t in times.items()},
            }
            with self._out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shapes", default="4096x4096,14336x4096", help="NxK,NxK,...")
    parser.add_argument("--tokens", default="1,4,8,16,32,128", help="M,M,...")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--layers", type=int, default=6, help="distinct layers used in turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="time a case")
    parser.add_argument("--out", help="JSON lines file to append to")
    return parser


def shapes(text: str) -> list[tuple[int, int]]:
    """ "4096x4096,14336x4096" -> [(4096, 4096), (14336, 4096)]"""
    pairs = [each.split("x") for each in text.split(",")]
    return [(int(n), int(k)) for n, k in pairs]


def commit() -> str:
    """The commit of the sources, or "unknown"."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
