"""benchmarks/tune.py, which writes the tables, on CPU kernels and with times made up."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ao_kernels import force, tuned

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ("--shapes", "64x256,160x384", "--tokens", "1,3,40")


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("AO_KERNELS", raising=False)
    before = force(None)
    yield importlib.import_module("tune")
    force(before)


class Clock:
    """Runs the sides; the time of a kernel is its place among them times the calls so far."""

    def __init__(self) -> None:
        self.n_cases = 0

    def __call__(self, sides: dict[str, list[Callable[[], Any]]]) -> dict[str, float]:
        self.n_cases += 1
        for calls in sides.values():
            assert len(calls) == 2
            for call in calls:
                call()
        return {name: self.n_cases + 0.25 * index for index, name in enumerate(sides, 1)}


def rows(path: Path) -> dict[tuple[str, str, int, int], tuned.Row]:
    return {(r.op, r.kind, r.N, r.K): r for r in tuned.read(path).rows}


def test_every_format_is_measured(tune: ModuleType, tmp_path: Path) -> None:
    """Those that have CPU kernels with them, the others with bfloat16 alone."""
    path, clock = tmp_path / "cpu.json", Clock()
    assert tune.main([*SMALL, "--ops", "all", "--out", str(path)], clock, "cpu") == 0
    found = rows(path)
    assert clock.n_cases == 3 * len(found) == 2 * 3 * len(tune.FORMATS)
    assert {row.op for row in found.values()} == {each.op for each in tune.FORMATS}
    for row in found.values():
        assert row.tokens == (1, 3, 40) and row.failed == {}
        assert None not in row.us["bf16"]
    assert found["int8_linear", "row", 160, 384].us.keys() <= {"bf16", "cpu"}


def test_parts_are_replaced_and_the_rest_stays(tune: ModuleType, tmp_path: Path) -> None:
    path, ops = tmp_path / "cpu.json", ("--ops", "int8_linear,float8_linear", "--out")
    tune.main([*SMALL, *ops, str(path)], Clock(), "cpu")
    before = rows(path)

    def later(sides: dict[str, Any]) -> dict[str, float]:
        return dict.fromkeys(sides, 1000.0)

    again = ["--shapes", "64x256", "--tokens", "3,7", "--ops", "int8_linear", "--out", str(path)]
    assert tune.main(again, later, "cpu") == 0
    after = rows(path)
    changed = ("int8_linear", "row", 64, 256)
    assert {key for key in before if before[key].us != after[key].us} == {changed}
    old, new = before[changed].us["bf16"], after[changed]
    assert new.tokens == (1, 3, 7, 40)
    assert new.us["bf16"] == (old[0], 1000.0, 1000.0, old[2])
    kept = tuned.read(path).runs
    assert set(new.run.split(tuned.AND)) <= kept.keys()
    assert all(facts["torch"] for facts in kept.values())

    tune.main([*again, "--fresh"], later, "cpu")
    assert rows(path).keys() == {changed}


def test_what_fails_is_recorded(
    tune: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def timer(sides: dict[str, Any]) -> dict[str, float]:
        raise RuntimeError("CUDA out of memory\nand more lines")

    path = tmp_path / "cpu.json"
    arguments = ["--shapes", "64x256", "--tokens", "2", "--ops", "int8_linear", "--out", str(path)]
    assert tune.main(arguments, timer, "cpu") == 1
    row = rows(path)["int8_linear", "row", 64, 256]
    assert row.us == {"bf16": (None,)}
    assert row.failed == {"all kernels, M=2": "RuntimeError: CUDA out of memory"}
    assert "FAILED int8_linear row 64x256, all kernels, M=2" in capsys.readouterr().out


def test_a_wrong_kernel_is_not_timed(
    tune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tune.Kernel(
        "cpu:wrong", "cpu", ("cpu",), lambda *a: None, lambda x, codes, *a: x[:, :64] * 7
    )
    refusing = tune.Kernel("cpu:shy", "cpu", ("cpu",), lambda *a: "is shy", lambda *a: None)
    op = tune.OPS["int8_linear"]
    monkeypatch.setattr(op, "kernels", [kernel, refusing])
    path = tmp_path / "cpu.json"
    arguments = ["--shapes", "64x256", "--tokens", "2", "--ops", "int8_linear", "--out", str(path)]
    assert tune.main(arguments, Clock(), "cpu") == 1
    row = rows(path)["int8_linear", "row", 64, 256]
    assert row.us.keys() == {"bf16"}
    assert list(row.failed) == ["cpu:wrong, M=2"] and "relative error" in str(row.failed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "int5_linear"], "unknown ops: int5_linear"),
        (["--tokens", "0,1"], "--tokens are positive"),
    ],
)
def test_options_that_make_no_sense(
    tune: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tune.main(arguments, Clock(), "cpu")
    assert message in capsys.readouterr().err


def test_the_table_of_another_gpu_is_not_added_to(tune: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(tuned.Table("another", [], {}).to_json())
    with pytest.raises(SystemExit, match="is of another, this is cpu"):
        tune.main([*SMALL, "--out", str(path)], Clock(), "cpu")


def test_no_forced_backend(tune: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AO_KERNELS", "triton")
    with pytest.raises(SystemExit, match="AO_KERNELS is set"):
        tune.main([], Clock(), "cpu")
