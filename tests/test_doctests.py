"""The examples in the docstrings of every package run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

from ao_kernels import cuda

PACKAGES = ["ao_core", "ao_kernels", "ao_quant", "ao_optim", "ao_float8", "ao_hf"]
OPTIONAL = {"triton", "transformers", "pytest"}  # a module that needs one of these may be absent


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is not installed"
        assert spec.submodule_search_locations is not None
        walk = pkgutil.walk_packages(spec.submodule_search_locations, f"{package}.")
        found += [package, *(module.name for module in walk)]
    return found


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    if name.startswith("ao_kernels.cuda.") and cuda.unavailable:
        pytest.skip(cuda.unavailable)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OPTIONAL:
            pytest.skip(f"{name} needs {error.name}")
        raise
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
