"""The fate of tests that need a GPU or Triton.

``gpu`` tests are skipped where there is no CUDA device. ``interpreted`` tests run Triton kernels on
a CPU. Triton reads TRITON_INTERPRET once, when it is imported, and then every kernel of the process
is interpreted: so a run with interpreted tests starts a child pytest with that variable, which
runs them all beside the others and writes down its reports, and each test, all others done,
reports here what it reported there. Another child runs the ``triton`` tests, which compile kernels:
it keeps a second core busy.
Where triton is not installed both are skipped; an installed triton that does not work fails them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from triton_interpreter import replace_language_once

_REPORTS = "AO_TEST_REPORTS"  # set in a child: the file for its reports
_TIMEOUT = 1800  # seconds; each takes about 300 of one core of a Xeon (Emerald Rapids)
_ALONE = {"OMP_NUM_THREADS": "1"}  # threads would wait for each other on two cores
_CHILDREN = {"triton": _ALONE, "interpreted": {**_ALONE, "TRITON_INTERPRET": "1"}}  # by mark


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter on a CPU")
    config.addinivalue_line(
        "markers", "triton: needs triton, but neither a GPU nor the interpreter"
    )
    path = os.environ.get(_REPORTS)
    if path:
        config.pluginmanager.register(_Writer(config, path))
        if os.environ.get("TRITON_INTERPRET") == "1":
            replace_language_once()


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
    items.sort(key=lambda item: list(_CHILDREN).index(where) if (where := _child_of(item)) else -1)


def _child_of(item: pytest.Item) -> str | None:
    """The mark whose child runs a test, or None if it runs here."""
    inside = _REPORTS in os.environ or os.environ.get("TRITON_INTERPRET") == "1"
    if inside or item.get_closest_marker("skip") or item.get_closest_marker("gpu"):
        return None
    return next((mark for mark in _CHILDREN if item.get_closest_marker(mark)), None)


def pytest_runtestloop(session: pytest.Session) -> None:
    if session.config.option.collectonly or session.testsfailed:
        return
    children = session.stash.setdefault(_children, {})
    for mark, environment in _CHILDREN.items():
        wanted = [item.nodeid for item in session.items if _child_of(item) == mark]
        if wanted:
            children[mark] = Child(session.config, wanted, environment)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for child in session.stash.get(_children, {}).values():
        child.stop()


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    mark = _child_of(item)
    if mark is None:
        return None
    child = item.session.stash[_children][mark]
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in child.reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Child:
    """A pytest that runs some of the tests, and what it reported."""

    def __init__(
        self, config: pytest.Config, nodeids: list[str], environment: dict[str, str]
    ) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-c", str(config.inipath)] if config.inipath else []
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        self._reports, self._output = (Path(self._folder.name, n) for n in ("reports", "output"))
        self._reports.touch()
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [*command, *nodeids],
                cwd=config.rootpath,
                env={**os.environ, **environment, _REPORTS: str(self._reports)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Also where the run ends before the child does."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    @functools.cached_property
    def reports(self) -> dict[str, list[pytest.TestReport]]:
        """What it reported, when it has ended."""
        self._process.wait(_TIMEOUT)
        found: dict[str, list[pytest.TestReport]] = {}
        for line in self._reports.read_text().splitlines():
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            found.setdefault(report.nodeid, []).append(report)
        return found

    def reports_of(self, item: pytest.Item) -> list[pytest.TestReport]:
        reports = self.reports.get(item.nodeid, [])
        if any(report.when == "teardown" for report in reports):
            return reports
        output = self._output.read_text()[-4000:]
        why = f"the run of the child ended before this test did:\n{output}"
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")]


class _Writer:
    """In the child: writes one line a report."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a") as file:
            file.write(json.dumps(data) + "\n")


_children = pytest.StashKey[dict[str, Child]]()
