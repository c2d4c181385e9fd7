"""Without `import ao_hf` a checkpoint of ours does not load in silence."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import INT8, load

PROGRAM = """
import sys
{first}
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
weight = model.model.layers[0].mlp.up_proj.weight
print(type(weight).__name__, weight.dtype, len(info["missing_keys"]), len(info["unexpected_keys"]))
"""


@pytest.fixture(scope="module")
def saved(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    load(checkpoint("llama"), INT8).save_pretrained(folder)
    return folder


def run(first: str, folder: Path) -> tuple[str, str]:
    program = [sys.executable, "-c", PROGRAM.replace("{first}", first), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_the_user_sees_that_no_weight_was_loaded(saved: Path) -> None:
    """The method is unknown, every linear weight is MISSING, every code UNEXPECTED: never codes as
    weights."""
    printed, seen = run("", saved)
    assert printed == "Parameter torch.bfloat16 14 28"
    assert "Unknown quantization type, got ao" in seen
    assert "MISSING" in seen and "newly initialized" in seen
    assert "UNEXPECTED" in seen and "weight_codes" in seen


def test_with_the_import_nothing_is_said(saved: Path) -> None:
    printed, seen = run("import ao_hf", saved)
    assert printed == "Int8Tensor torch.bfloat16 0 0"
    assert "MISSING" not in seen and "quantization" not in seen
