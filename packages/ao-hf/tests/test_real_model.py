"""A real language model: AO_REFERENCE_LM, or ../shared/models/reference-lm beside the
repository."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import assert_same_state, load
from torch import Tensor

from ao_hf import AoConfig
from ao_quant import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8WeightOnlyConfig,
)

REFERENCE = Path("shared", "models", "reference-lm")
BESIDE = [parent / REFERENCE for parent in Path(__file__).parents]
FOLDER = Path(os.environ.get("AO_REFERENCE_LM") or next(filter(Path.is_dir, BESIDE), REFERENCE))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").exists(),
    reason="no reference model: set AO_REFERENCE_LM to its folder",
)

# How far the loss on real text may rise over the float model's: about twice what was measured
# (int8 +0.0005, int4 HQQ +0.0151, 8da4w +0.0096, int8 with embeddings +0.0005).
CONFIGS = {
    "int8": (AoConfig(Int8WeightOnlyConfig()), 0.001),
    "int4 hqq": (AoConfig(Int4WeightOnlyConfig(algorithm="hqq")), 0.03),
    "8da4w": (AoConfig(Int8DynamicActivationInt4WeightConfig()), 0.02),
    "int8 embeddings": (AoConfig(Int8WeightOnlyConfig(), include_embedding=True), 0.001),
}


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """(2, 512) tokens of a real text."""
    import numpy

    tokens = numpy.load(FOLDER / "eval_tokens.npz")
    name = sorted(tokens.files)[0]
    return torch.from_numpy(tokens[name].reshape(-1)[:1024].astype("int64")).reshape(2, 512)


@pytest.fixture(scope="module")
def float_loss(windows: Tensor) -> float:
    return loss(load(FOLDER, dtype=torch.float32), windows)


def loss(model: Any, windows: Tensor) -> float:
    with torch.no_grad():
        return model(windows, labels=windows).loss.item()


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_round_trip(name: str, windows: Tensor, float_loss: float, tmp_path: Path) -> None:
    config, allowed = CONFIGS[name]
    model = load(FOLDER, config, dtype=torch.float32)
    found = loss(model, windows)
    assert -0.02 < found - float_loss < allowed
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert_same_state(model, reloaded)
    prompt = windows[:1, :16]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **options)
    assert torch.equal(
        expected, reloaded.generate(prompt, cache_implementation="static", **options)
    )
