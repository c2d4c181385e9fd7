"""The examples run, at sizes for a CPU; that of Transformers in tests/test_float8_training.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mesh_training import train_on_both_meshes

from ao_core.testing.sharding_contract import run_two_processes


def test_train_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train_llama

    curves = tmp_path / "curves.json"
    sizes = "--shape tiny --steps 25 --batch 8 --context 32 --evaluations 4 --lr 0.01 --device cpu"
    recipes = ["bf16", "bf16 again", "tensorwise", "rowwise_with_gw_hp"]
    runs = train_llama.main([*sizes.split(), "--recipes", *recipes, "--out", str(curves)])
    assert [run["recipe"] for run in runs] == recipes
    assert json.loads(curves.read_text()) == runs
    exact = runs[0]
    assert exact["losses"][0] > 5 and exact["held_out"] < 3.6
    for run in runs:
        assert run["losses"][0] == pytest.approx(exact["losses"][0], rel=0.01)
        assert run["held_out"] == pytest.approx(exact["held_out"], rel=0.05)
    assert "x bf16" in capsys.readouterr().out
    assert runs[1]["losses"] != exact["losses"]


def test_the_model_of_the_loss_comparison_has_a_hundred_million_parameters() -> None:
    from llama import SHAPES, Llama

    with torch.device("meta"):
        model = Llama(SHAPES["100m"])
    assert sum(p.numel() for p in model.parameters()) >= 100e6


def test_the_text_is_there() -> None:
    import train_llama

    data, held_out = train_llama.corpus([])
    assert len(data) > 2_000_000 and len(held_out) > 100_000
    assert data.dtype == torch.uint8


def test_train_distributed() -> None:
    run_two_processes(train_on_both_meshes)
