"""What of ao-float8's examples needs more than the package declares: Transformers' Trainer, and the
picture of the loss curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "packages/ao-float8/examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


@pytest.mark.filterwarnings("ignore")  # of Transformers and accelerate
def test_trainer(tmp_path: Path) -> None:
    """Accumulation and checkpointing, and an ordinary checkpoint at the end."""
    import train_transformers
    from transformers import AutoModelForCausalLM

    from ao_float8 import Float8Linear

    out = tmp_path / "trained"
    sizes = "--width 64 --layers 1 --steps 20 --batch 4 --context 32 --every-layer --emulate"
    model, log = train_transformers.main([*sizes.split(), "--checkpointing", "--out", str(out)])
    assert sum(isinstance(m, Float8Linear) for m in model.modules()) == 7
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    again = AutoModelForCausalLM.from_pretrained(out)
    assert not any(isinstance(m, Float8Linear) for m in again.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.float()), name


def test_picture_of_losses(tmp_path: Path) -> None:
    import train_llama

    runs = [
        {
            "recipe": recipe,
            "parameters": 117e6,
            "losses": [5.5 * share / (1 + step) + 1 for step in range(40)],
            "held_out": 1.2,
            "ms": 10.0,
        }
        for recipe, share in (("bf16", 1.0), ("rowwise", 1.001))
    ]
    curves, picture = tmp_path / "curves.json", tmp_path / "losses.png"
    curves.write_text(json.dumps(runs))
    assert train_llama.main(["--draw", str(curves), str(picture)]) == runs
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
