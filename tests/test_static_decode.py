"""The benchmark of the 8B shape on a GPU, on a tiny shape and a CPU: all of it but the graph."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def benchmarks(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """decode_cuda, with what it imports from its folder; records go to tmp_path."""
    monkeypatch.setenv("AO_RESULTS", str(tmp_path))
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    names = ("measure", "models", "speed", "llama_sides", "decode_cuda")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = {name: importlib.import_module(name) for name in names}
    for name in names:  # so that the module of this test goes with it
        monkeypatch.setitem(sys.modules, name, modules[name])
    return modules["decode_cuda"]


def test_tokens_are_those_of_generate(benchmarks: ModuleType) -> None:
    speed, model = benchmarks.speed, benchmarks.models.llama("tiny")
    decode = speed.StaticDecode(model, batch=3, tokens=12, context=16)
    found = decode.generate(12)
    ids = speed.prompt(model, 16, 3)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 13, "min_new_tokens": 13}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, 16:]
    assert torch.equal(decode.first, expected[:, :1])
    assert torch.equal(found, expected[:, 1:])
    assert len({tuple(row) for row in found.tolist()}) == 3
    assert torch.equal(decode.generate(12), found)  # starts behind the prompt again


def test_rows_hold_both_sides_and_the_counted_bytes(
    benchmarks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "--device cpu --shape tiny --prefill 32 --tokens 4 --context 8 --rounds 1 --batches 1 2"
    only = ["--only", "int4 g128", "int4 g128, bf16 head", "int8 weight-only"]
    monkeypatch.setattr(sys, "argv", ["decode_cuda", *given.split(), *only])
    assert benchmarks.main() == 0
    (path,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert [(row["format"], row["figure"]) for row in rows] == [
        (name, figure) for name in only[1:] for figure in ("decode 1", "decode 2", "prefill 32")
    ]
    bf16 = rows[0]["bf16_weights_gb"] * 1e9
    norms, inv_freq = 5 * 256 * 2, 2 * 32 * 4
    linears = 2 * (256 * 256 * 3 + 3 * 256 * 512)  # elements; q, o, and k with v
    head = embedding = 512 * 256
    assert bf16 == 2 * (linears + head + embedding) + norms + inv_freq
    bytes_of = {row["format"]: row["weights_gb"] * 1e9 for row in rows}
    left = 2 * embedding + norms + inv_freq
    int4 = 0.5 + 2 / 128  # codes, and a bfloat16 scale a group
    assert bytes_of["int4 g128"] == pytest.approx(left + (linears + head) * int4)
    assert bytes_of["int4 g128, bf16 head"] == pytest.approx(left + linears * int4 + 2 * head)
    for row in rows:
        assert row["tokens_per_s"]["median"] > 0 and row["bf16_tokens_per_s"]["median"] > 0
        assert row["error"] < 0.05 and row["error_against"] == "dequantized weights"


def test_a_wrong_side_is_not_timed(
    benchmarks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: torch.nn.Module) -> dict[str, object]:
        weight = model.model.layers[0].mlp.down_proj.weight
        other = torch.nn.Parameter(torch.randn_like(weight), requires_grad=False)
        model.model.layers[0].mlp.down_proj.weight = other
        return {}

    monkeypatch.setattr(benchmarks, "dequantized", lambda model, float_model: float_model)
    monkeypatch.setattr(
        benchmarks.llama_sides,
        "ours",
        lambda only, bits: [benchmarks.Side("spoiled", "ao", spoil)],
    )
    given = "--device cpu --shape tiny --prefill 0 --tokens 4 --context 8 --rounds 1 --batches 1"
    monkeypatch.setattr(sys, "argv", ["decode_cuda", *given.split()])
    assert benchmarks.main() == 1
    assert list(tmp_path.glob("*.jsonl")) == []
