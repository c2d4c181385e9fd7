"""The examples run, at sizes for a CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mesh_training import train_on_both_meshes

from ao_core.testing.sharding_contract import run_two_processes
from ao_float8 import Float8Linear


def test_train_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train_llama

    curves = tmp_path / "curves.json"
    sizes = "--shape tiny --steps 25 --batch 8 --context 32 --evaluations 4 --lr 0.01 --device cpu"
    recipes = ["tensorwise", "rowwise_with_gw_hp"]
    runs = train_llama.main([*sizes.split(), "--recipes", *recipes, "--out", str(curves)])
    assert [run["recipe"] for run in runs] == ["bf16", *recipes]
    assert json.loads(curves.read_text()) == runs
    exact = runs[0]
    assert exact["losses"][0] > 5 and exact["held_out"] < 3.6
    for run in runs:
        assert run["losses"][0] == pytest.approx(exact["losses"][0], rel=0.01)
        assert run["held_out"] == pytest.approx(exact["held_out"], rel=0.05)
    assert "% over bf16" in capsys.readouterr().out


def test_the_text_is_there() -> None:
    import train_llama

    data, held_out = train_llama.corpus([])
    assert len(data) > 2_000_000 and len(held_out) > 100_000
    assert data.dtype == torch.uint8


def test_train_distributed() -> None:
    run_two_processes(train_on_both_meshes)


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None
    or importlib.util.find_spec("accelerate") is None,
    reason="needs transformers and accelerate, which this package does not",
)
@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_train_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train_transformers
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    sizes = "--width 64 --layers 1 --steps 20 --batch 4 --context 32 --every-layer --emulate"
    model, log = train_transformers.main([*sizes.split(), "--checkpointing"])
    assert sum(isinstance(m, Float8Linear) for m in model.modules()) == 7
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    again = AutoModelForCausalLM.from_pretrained("trained")  # an ordinary checkpoint
    assert not any(isinstance(m, Float8Linear) for m in again.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.float()), name
