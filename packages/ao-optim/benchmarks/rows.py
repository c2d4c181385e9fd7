"""Rows of results: one JSON line a row, in one file a kind of machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
RESULTS = Path(os.environ.get("AO_RESULTS", ROOT / "benchmarks" / "results"))


def machine(device: str) -> str:
    """The name of the GPU, or of the processor; never that of a host."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    name = facts.get("model name", platform.processor() or platform.machine())
    if "cpu family" in facts:
        name += f" family {facts['cpu family']} model {facts['model']}"
    return f"{name} {os.cpu_count()} cores"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def path(device: str) -> Path:
    """The file of this machine's results."""
    slug = re.sub(r"[^a-z0-9]+", "-", machine(device).lower()).strip("-")
    return RESULTS / f"optim-{slug}.jsonl"


def append(benchmark: str, rows: list[dict[str, Any]], *, device: str, **settings: Any) -> Path:
    """Appends the rows with date, commit, machine, versions and settings; gives the file."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False)
    file_path = path(device)
    file_path.parent.mkdir(parents=True, exist_ok=True)
    versions = {name: _version(name) for name in ("triton", "torchao", "bitsandbytes")}
    common = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": head.stdout.strip() or "unknown",
        "machine": machine(device),
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, **{k: v for k, v in versions.items() if v}},
        "settings": settings,
    }
    with file_path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**common, **row}) + "\n")
    return file_path


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table whose columns line up."""
    columns = list(rows[0])
    width = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    line = "| " + " | ".join(f"{{:{width[c]}}}" for c in columns) + " |"
    rule = "|" + "|".join("-" * (width[c] + 2) for c in columns) + "|"
    return "\n".join([line.format(*columns), rule, *(line.format(*r.values()) for r in rows)])
