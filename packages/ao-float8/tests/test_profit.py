"""The filter: measured tables, interpolation, and counting where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ao_float8 import Float8LinearConfig, profit
from ao_float8.config import RECIPES

CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU "Test 1" where tensorwise wins by the product of sizes; rowwise at one point."""
    rows = []
    for M in (1024, 4096):
        for N in (512, 2048):
            for K in (512, 2048):
                us = {"tensorwise": 100.0 * 1024 * 512 * 512 / (M * N * K), "rowwise": None}
                rows.append({"M": M, "N": N, "K": K, "bf16_us": 100.0, "us": us})
    rows[0]["us"]["rowwise"] = 50.0
    (tmp_path / "test-1.json").write_text(json.dumps({"format": 1, "gpu": "Test 1", "rows": rows}))
    monkeypatch.setattr(profit, "_FOLDER", tmp_path)
    monkeypatch.setattr(profit, "_gpu", lambda device: "Test 1")
    profit._table.cache_clear()


def ratio(recipe: str, M: int, N: int, K: int) -> float:
    return profit.judge(RECIPES[recipe], N, K, tokens=M, device=CPU).ratio


def test_measured_points_and_between(table: None) -> None:
    assert ratio("tensorwise", 1024, 512, 512) == pytest.approx(1)
    assert ratio("tensorwise", 4096, 512, 2048) == pytest.approx(16)
    assert ratio("tensorwise", 2048, 1024, 1024) == pytest.approx(8)  # linear in logarithms
    assert ratio("tensorwise", 64, 16, 16) == pytest.approx(1)  # the nearest
    assert ratio("tensorwise", 10**6, 10**6, 10**6) == pytest.approx(64)
    assert ratio("rowwise", 4096, 2048, 2048) == pytest.approx(2)  # a hole


def test_the_verdict_says_where_it_is_from(table: None) -> None:
    found = profit.judge(Float8LinearConfig(), 512, 512, tokens=1024, device=CPU)
    assert not found.wins
    assert str(found) == "1.00 x the speed of bf16 at 1024 tokens of 512 x 512 (measured on Test 1)"


def test_blocks_that_the_library_does_not_take_lose() -> None:
    for M, N, K in ((8192, 16384, 16512), (8192, 16640, 16384), (8200, 16384, 16384)):
        found = profit.judge(RECIPES["blockwise"], N, K, tokens=M, device=CPU)
        assert not found.wins and "512 divides not both sizes, or 128 not the tokens" in str(found)
        assert profit.judge(RECIPES["rowwise"], N, K, tokens=M, device=CPU).wins
    assert profit.judge(RECIPES["blockwise"], 16384, 16896, tokens=8320, device=CPU).wins


def test_recipes_without_rows_are_counted(table: None) -> None:
    found = profit.judge(RECIPES["int8"], 512, 512, tokens=1024, device=CPU)
    assert "counted" in str(found)
    half = Float8LinearConfig(grad_weight_in_high_precision=True)  # of no recipe
    assert "counted" in str(profit.judge(half, 512, 512, tokens=1024, device=CPU))


@pytest.mark.parametrize("recipe", RECIPES)
def test_counts_of_small_and_large_layers(recipe: str) -> None:
    for size in (16, 128, 512):
        assert profit._counted(RECIPES[recipe], size, size, size) < profit.LEAST
    wins = [profit._counted(RECIPES[recipe], 2**i, 2**i, 2**i) for i in range(9, 15)]
    large = [r for r in wins if r > profit.LEAST]
    assert large == sorted(large) == wins[len(wins) - len(large) :]  # once it wins, it goes on
    assert (wins[-1] < 1) == (recipe == "mxfp8")  # which no Hopper GPU multiplies


def test_shipped_tables_are_whole() -> None:
    for path in (Path(profit.__file__).parent / "tuned").glob("*.json"):
        data = json.loads(path.read_text())
        assert data["format"] == profit.FORMAT and profit.path_of(data["gpu"]).name == path.name
        for row in data["rows"]:
            assert min(row["M"], row["N"], row["K"], row["bf16_us"]) > 0
            assert set(row["us"]) <= set(RECIPES)
            assert all(us is None or us > 0 for us in row["us"].values())
