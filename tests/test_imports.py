"""Importing a package is silent and lean, and touches no device, thread or setting."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PACKAGES = ["ao_core", "ao_kernels", "ao_quant", "ao_optim", "ao_float8", "ao_hf"]

# What an import may bring in besides torch, the standard library and our own packages.
ALLOWED = {
    "ao_core": {"safetensors"},
    "ao_kernels": {"safetensors"},
    "ao_quant": {"safetensors"},
    "ao_optim": {"safetensors"},
    "ao_float8": {"safetensors"},
}

PROBE = """
import json, logging, os, sys, threading, warnings
import torch
logging.basicConfig(level=0, stream=sys.stderr)

def state():
    return {
        "filters": len(warnings.filters),
        "handlers": len(logging.getLogger().handlers),
        "threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0,
        "python threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "hooks": repr((sys.excepthook, sys.settrace)),
        "linear": repr(torch.nn.functional.linear),
        "environment": sorted(os.environ),
    }

before, modules = state(), set(sys.modules)
warnings.simplefilter("always")
before["filters"] = len(warnings.filters)
import {package}
print(json.dumps({
    "before": before,
    "after": state(),
    "modules": sorted(set(sys.modules) - modules),
    "cuda": torch.cuda.is_initialized(),
}))
"""


@pytest.fixture(scope="module", params=PACKAGES)
def probe(request: pytest.FixtureRequest) -> tuple[str, dict, str]:
    code = PROBE.replace("{package}", request.param)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"importing {request.param} prints: {lines[:-1]}"
    return request.param, json.loads(lines[0]), done.stderr


def test_silent(probe: tuple[str, dict, str]) -> None:
    package, _, stderr = probe
    assert stderr == "", f"importing {package} warns or logs"


def test_no_state_is_touched(probe: tuple[str, dict, str]) -> None:
    package, found, _ = probe
    if package not in ALLOWED:  # Transformers, which an adapter imports, adds filters of its own
        found["after"]["filters"] = found["before"]["filters"]
    assert found["after"] == found["before"]
    assert not found["cuda"]


def test_lean(probe: tuple[str, dict, str]) -> None:
    package, found, _ = probe
    if package not in ALLOWED:
        pytest.skip(f"{package} is an adapter: it imports the library it adapts to")
    allowed = ALLOWED[package] | set(PACKAGES) | {"torch"} | set(sys.stdlib_module_names)
    extra = {name.partition(".")[0] for name in found["modules"]} - allowed
    assert not extra, f"importing {package} imports optional packages"
    heavy = [m for m in found["modules"] if m in ("torch._dynamo", "torch._inductor")]
    assert not heavy, f"importing {package} imports the compiler"
