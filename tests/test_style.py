"""The rules of docs/style.md that a program can check and ruff does not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

LONG = 450  # lines; a file of more must say why
REASON = re.compile(r"this file is long", re.IGNORECASE)
SHELVES = {"utils", "util", "helpers", "helper", "common", "base", "misc", "api"}
CODE = (".py", ".cpp", ".h", ".cu", ".cuh")
TEXT = {*CODE, ".pyi", ".cmake", ".md", ".toml", ".txt", ".ini", ".cfg", ".json", ""}


def tracked(root: Path) -> list[Path]:
    """Text files of the repository: what git tracks, or all files where there is no git."""
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [root / line for line in listed.stdout.splitlines()]
    else:
        hidden = {".git", ".nox", ".whl", "demo-output", "build", "__pycache__"}
        paths = [p for p in root.rglob("*") if not hidden & set(p.relative_to(root).parts)]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


@pytest.fixture(scope="module")
def texts(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in tracked(root)}


def matches(texts: dict[str, str], pattern: str) -> list[str]:
    expression = re.compile(pattern)
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        if Path(name).name != Path(__file__).name
        for number, line in enumerate(text.splitlines(), 1)
        if expression.search(line)
    ]


def test_modules_are_nouns(texts: dict[str, str]) -> None:
    code = [Path(name) for name in texts if name.endswith(CODE)]
    assert [str(p) for p in code if set(p.stem.split("_")) & SHELVES] == []
    assert [str(p) for p in code if SHELVES & set(p.parent.parts)] == []


def test_long_files_say_why(texts: dict[str, str]) -> None:
    code = {name: text for name, text in texts.items() if name.endswith(CODE)}
    silent = {
        name: text.count("\n")
        for name, text in code.items()
        if text.count("\n") > LONG and not REASON.search("\n".join(text.splitlines()[:40]))
    }
    assert not silent, "over 450 lines without 'This file is long because ...' at the top"


def test_no_machine_paths(texts: dict[str, str]) -> None:
    assert matches(texts, r"(?<![\w./~-])/(work|opt|root|home|Users|mnt)/\w") == []


def test_nothing_is_left_for_later(texts: dict[str, str]) -> None:
    assert matches(texts, r"\b(TODO|FIXME|XXX|HACK)\b") == []


def test_no_emoji(texts: dict[str, str]) -> None:
    assert matches(texts, "[\U0001f300-\U0001faff\u2600-\u27bf\ufe0f]") == []


def test_contributing_names_paths_that_exist(root: Path) -> None:
    """Every path in the table of what a change touches; <op>, <format> stand for any name."""
    text = (root / "CONTRIBUTING.md").read_text()
    cells = re.findall(r"^\|[^|]+\|([^|]+)\|$", text, re.MULTILINE)
    paths = {path for cell in cells[2:] for path in re.findall(r"`([^`\s]*/[^`\s]*)`", cell)}
    assert len(paths) > 10
    missing = [path for path in sorted(paths) if not _exists(root, path)]
    assert missing == [], "CONTRIBUTING.md names paths that are not there"


def _exists(root: Path, path: str) -> bool:
    return any(root.glob(re.sub(r"<[^>]+>", "*", path)))


def test_licenses_are_in_every_package(root: Path) -> None:
    licence = (root / "LICENSE").read_text()
    for package in root.glob("packages/*/pyproject.toml"):
        assert (package.parent / "LICENSE").read_text() == licence, package.parent.name


def test_decisions_are_listed(root: Path) -> None:
    listed = (root / "docs/decisions/README.md").read_text()
    files = [path.name for path in sorted(root.glob("docs/decisions/0*.md"))]
    assert [name for name in files if f"({name})" not in listed] == []


def test_constraints_pin_torch(root: Path) -> None:
    assert "torch==2.13.0" in (root / "constraints.txt").read_text().splitlines()
