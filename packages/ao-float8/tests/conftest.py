"""Without a GPU its tests are skipped, and the run ends by saying how many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ao_float8.cast_cache import GRADIENTS, INPUTS


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Same seed, and no codes of an earlier test."""
    torch.manual_seed(0)
    INPUTS.forget()
    GRADIENTS.forget()
    torch.compiler.reset()
    yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    n_gpu = sum("needs a CUDA device" in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"{n_gpu} gpu tests could not run on this machine")
