"""Every python block of every README and of docs/ runs, in order, in one namespace a page.

What a reader need not see goes into a comment that starts with `<!-- setup`; it runs in its place.
A block that cannot run is not marked as python.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOBS = ("*.md", "packages/*/README.md", "docs/**/*.md")
PAGES = sorted(path for glob in GLOBS for path in ROOT.glob(glob))
CODE, SETUP = r"^```python\n(.*?)^```$", r"^<!-- setup\n(.*?)^-->$"
BLOCK = re.compile(f"{CODE}|{SETUP}", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The code of a page; empty lines before a block make errors show the line of the page."""
    text = page.read_text()
    return [
        "\n" * (text[: match.start()].count("\n") + 1) + (match[1] or match[2])
        for match in BLOCK.finditer(text)
    ]


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_readme_has_code_and_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert blocks(ROOT / "README.md")
    assert "python3 -m pip install nox && python3 -m nox -s demo" in text
    assert "python3 -m nox -s tests" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target and "mailto:" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
