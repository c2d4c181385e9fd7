"""The fate of tests that need a GPU or Triton's interpreter.

``gpu`` tests are skipped where there is no CUDA device. ``interpreted`` tests run Triton kernels on
a CPU. Triton reads TRITON_INTERPRET once, when it is imported, and then every kernel of the process
is interpreted: so the first interpreted test of a run starts one child pytest with that variable,
which runs them all and writes down its reports, and each test reports here what it reported there.
Where triton is not installed they are skipped; an installed triton that does not work fails them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

_REPORTS = "AO_TEST_REPORTS"  # set in the child: the file for its reports
_TIMEOUT = 1800  # seconds; 620 of one core of a Xeon (Emerald Rapids)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter on a CPU")
    config.addinivalue_line(
        "markers", "triton: needs triton, but neither a GPU nor the interpreter"
    )
    path = os.environ.get(_REPORTS)
    if path:
        config.pluginmanager.register(_Writer(config, path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = not torch.cuda.is_available()
    no_triton = importlib.util.find_spec("triton") is None
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif no_triton and (
            item.get_closest_marker("interpreted") or item.get_closest_marker("triton")
        ):
            item.add_marker(pytest.mark.skip(reason="needs triton: pip install ao-kernels[triton]"))


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    elsewhere = item.get_closest_marker("interpreted") and not item.get_closest_marker("skip")
    if not elsewhere or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    stash = item.session.stash
    if _child not in stash:
        items = item.session.items
        wanted = [each.nodeid for each in items if each.get_closest_marker("interpreted")]
        stash[_child] = Child(item.config, wanted)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in stash[_child].reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Child:
    """The pytest that runs the interpreted tests, and what it reported."""

    def __init__(self, config: pytest.Config, nodeids: list[str]) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-c", str(config.inipath)] if config.inipath else []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "reports")
            path.touch()
            done = subprocess.run(
                [*command, *nodeids],
                cwd=config.rootpath,
                env={**os.environ, "TRITON_INTERPRET": "1", _REPORTS: str(path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_TIMEOUT,
            )
            lines = path.read_text().splitlines()
        self.output = done.stdout
        self.reports: dict[str, list[pytest.TestReport]] = {}
        for line in lines:
            report = config.hook.pytest_report_from_serializable(
                config=config, data=json.loads(line)
            )
            self.reports.setdefault(report.nodeid, []).append(report)

    def reports_of(self, item: pytest.Item) -> list[pytest.TestReport]:
        reports = self.reports.get(item.nodeid, [])
        if any(report.when == "teardown" for report in reports):
            return reports
        why = f"the interpreted run ended before this test did:\n{self.output[-4000:]}"
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")]


class _Writer:
    """In the child: writes one line a report."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a") as file:
            file.write(json.dumps(data) + "\n")


_child = pytest.StashKey[Child]()
