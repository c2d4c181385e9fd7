"""Imports in src/ against dependencies in pyproject.toml: the arrows of docs/architecture.md."""

from __future__ import annotations

import ast
import graphlib
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

# What each package may stand on. A new arrow is a decision: write it in docs/decisions/ first.
ARROWS = {
    "ao-core": set(),
    "ao-kernels": {"ao-core"},
    "ao-quant": {"ao-core", "ao-kernels"},
    "ao-optim": {"ao-core", "ao-kernels"},
    "ao-float8": {"ao-core", "ao-kernels"},
    "ao-hf": {"ao-core", "ao-kernels", "ao-quant"},
}
PACKAGES = list(ARROWS)


def requirements(project: dict[str, Any], *, extras: bool) -> list[Requirement]:
    """The run-time dependencies, and with ``extras`` those of every extra too."""
    found = list(project["project"]["dependencies"])
    if extras:
        for each in project["project"].get("optional-dependencies", {}).values():
            found += each
    return [Requirement(text) for text in found]


def names(found: list[Requirement]) -> set[str]:
    return {requirement.name.lower().replace("_", "-") for requirement in found}


def imported(source: Path) -> dict[str, list[str]]:
    """Distribution name -> the files that import it; relative and standard imports left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and top != source.name:
                    found.setdefault(top.replace("_", "-"), []).append(str(path.name))
    return found


def test_every_package_has_its_row(projects: dict[str, Any]) -> None:
    assert set(projects) == set(ARROWS)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_declared(package: str, root: Path, projects: dict[str, Any]) -> None:
    source = root / "packages" / package / "src" / package.replace("-", "_")
    declared = names(requirements(projects[package], extras=True))
    undeclared = {name: files for name, files in imported(source).items() if name not in declared}
    assert not undeclared, f"{package} imports what its pyproject.toml does not declare"


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_are_those_of_the_table(package: str, root: Path, projects: dict[str, Any]) -> None:
    source = root / "packages" / package / "src" / package.replace("-", "_")
    declared = names(requirements(projects[package], extras=False)) & set(PACKAGES)
    used = set(imported(source)) & set(PACKAGES)
    assert declared <= ARROWS[package]
    extra = names(requirements(projects[package], extras=True)) & set(PACKAGES) - declared
    assert used == declared | (used & extra), "an arrow in pyproject.toml that no import needs"


def test_no_cycles(projects: dict[str, Any]) -> None:
    graph = {
        package: names(requirements(project, extras=False)) & set(projects)
        for package, project in projects.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(projects)


@pytest.mark.parametrize("package", PACKAGES)
def test_ranges_admit_the_versions_in_the_tree(package: str, projects: dict[str, Any]) -> None:
    for requirement in requirements(projects[package], extras=True):
        if requirement.name in projects:
            version = projects[requirement.name]["project"]["version"]
            assert requirement.specifier, f"{package} takes any version of {requirement.name}"
            assert Version(version) in requirement.specifier, f"{requirement} excludes {version}"


@pytest.mark.parametrize("package", PACKAGES)
def test_pyproject(package: str, projects: dict[str, Any]) -> None:
    project = projects[package]["project"]
    build = {Requirement(text).name for text in projects[package]["build-system"]["requires"]}
    assert "torch" not in build, "a build that needs torch ties the wheel to one torch version"
    assert project["name"] == package
    assert project["requires-python"] == ">=3.10"
    assert project["license"] == "BSD-3-Clause"
    assert "version" not in project.get("dynamic", [])
