"""Checkpoints of format version 1, kept for ever: today's reader loads them, and while version 1 is
what is written, today's writer writes the same bytes.

    python test_checkpoint_golden.py      writes them anew; for a new format version only
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoint_samples import assert_same
from grouped_example import GroupedExample
from torch import Tensor

from ao_core.checkpoint import load, load_config, read_header, save
from ao_core.config import AOBaseConfig, register_config
from ao_core.granularity import Granularity, PerGroup

GOLDEN = Path(__file__).with_name("golden")
GROUPS = PerGroup(16)
METADATA = {"title": "golden, ñ"}


@register_config
@dataclass(frozen=True, kw_only=True)
class GoldenConfig(AOBaseConfig):
    dtype: torch.dtype = torch.int3
    granularity: Granularity = GROUPS
    rules: tuple[tuple[str, int], ...] = (("b", 1), ("a", 2))


def state() -> dict[str, Tensor]:
    """Fields are given as bits, so nothing here depends on how weights are quantized."""
    quantized = GroupedExample(
        codes=torch.arange(30, dtype=torch.uint8).reshape(2, 15),
        scale=torch.tensor([[0.5, 1, 1.5], [2, -3, 2**-126]], dtype=torch.bfloat16),
        zero=torch.tensor([[0, 1, 2], [3.5, 7, -1]], dtype=torch.bfloat16),
        group_size=16,
        bits=3,
        note="q",
        share=0.25,
        shape=torch.Size((2, 40)),
        dtype=torch.float16,
    )
    bias = torch.tensor([1.0, -0.0, float("inf")])
    return {
        "a.weight": quantized,
        "a.bias": bias,
        "b.weight": quantized.rebuild(zero=None, note=None),
        "c.weight": quantized,
        "c.bias": bias,
        "steps": torch.tensor(-(2**40)),
    }


def write(folder: Path) -> None:
    config = GoldenConfig()
    save(state(), folder / "v1.safetensors", config=config, metadata=METADATA)
    save(state(), folder / "v1", config=config, metadata=METADATA, max_shard_size=60)


@pytest.mark.parametrize("name", ["v1.safetensors", "v1"])
def test_reading(name: str) -> None:
    found = load(GOLDEN / name)
    assert_same(found, state())
    assert found["a.weight"] is found["c.weight"] and found["a.bias"] is found["c.bias"]
    assert load_config(GOLDEN / name) == GoldenConfig()
    assert read_header(GOLDEN / name).metadata == METADATA | {"format": "pt"}


def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda n: "0" * 2 * n)
    write(tmp_path)
    expected = {path.relative_to(GOLDEN): path for path in GOLDEN.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*") if path.is_file()}
    assert found.keys() == expected.keys() and len(found) > 3
    for name, path in found.items():
        assert path.read_bytes() == expected[name].read_bytes(), name


if __name__ == "__main__":
    secrets.token_hex = lambda n=None: "0" * 2 * (n or 4)
    write(GOLDEN)
