"""docs/support.md is what its generator gives today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import ao_quant


@pytest.mark.filterwarnings("ignore")
def test_support_page_is_fresh(root: Path) -> None:
    path = root / "docs" / "generate_support.py"
    spec = importlib.util.spec_from_file_location("generate_support", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.text(), "run: python docs/generate_support.py"
    exported = {name for name in ao_quant.__all__ if name.endswith("Config")} - {"FqnToConfig"}
    assert {type(config).__name__ for config in module.CONFIGS.values()} == exported
