"""What the tests of the whole repository share: where things are, and the fate of gpu tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def projects() -> dict[str, dict[str, Any]]:
    """Distribution name -> its parsed pyproject.toml."""
    paths = sorted(ROOT.glob("packages/*/pyproject.toml"))
    return {path.parent.name: tomllib.loads(path.read_text()) for path in paths}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    n_gpu = sum("needs a CUDA device" in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"{n_gpu} gpu tests could not run on this machine")
