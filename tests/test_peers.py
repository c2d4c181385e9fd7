"""Other libraries in the benchmarks of CUDA kernels: who is timed, and who is left out and why."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

Call = Callable[[Tensor], Tensor]


@pytest.fixture
def peers(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "packages" / "ao-kernels" / "benchmarks"))
    for name in ("report", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    module = sys.modules["peers"]
    monkeypatch.setattr(module, "_try_graph", lambda call: call())  # no CUDA graph on a CPU
    return module


def right(weight: Tensor) -> Call:
    return lambda x: linear(x, weight)


def wrong(weight: Tensor) -> Call:
    return lambda x: linear(x, weight) * 1.5


def absent(weight: Tensor) -> Call:
    raise ImportError("No module named 'absent'")


def crashing(weight: Tensor) -> Call:
    def call(x: Tensor) -> Tensor:
        raise RuntimeError("shape not supported\nand a stack of calls")

    return call


def test_only_right_results_are_timed(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    makes = {"right": right, "wrong": wrong, "absent": absent, "crashing": crashing}
    table = {name: {"int4": peers.Peer(make, 0.1)} for name, make in makes.items()}
    table["slow"] = {"int4": peers.Peer(right, 0.1, most_tokens=2)}
    table["other"] = {"int8": peers.Peer(right, 0.1)}
    monkeypatch.setattr(peers, "PEERS", table)
    weights = [torch.randn(8, 16), torch.randn(8, 16)]
    found = peers.Peers("int4", ",".join(table), weights)
    x = torch.randn(3, 16)
    sides = found.sides(x)
    assert list(sides) == ["right"]
    for call, weight in zip(sides["right"], weights, strict=True):
        assert torch.equal(call(), linear(x, weight))
    assert list(found.sides(x[:2])) == ["right", "slow"]
    told = capsys.readouterr().out.splitlines()
    assert told[:4] == [
        "absent: left out: ImportError: No module named 'absent'",
        "wrong, 3 tokens: left out: AssertionError: wrong: relative error 0.5 exceeds 0.1",
        "crashing, 3 tokens: left out: RuntimeError: shape not supported",
        "slow, 3 tokens: left out: ValueError: not timed with more than 2 tokens",
    ]


def test_an_unknown_peer_is_named(peers: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no peer is called nobody; there are tinygemm, torchao"):
        peers.Peers("int4", "nobody", [torch.ones(1, 1)])


def test_int4_codes_stand_for_the_weight(peers: ModuleType) -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scale = peers._int4_codes(weight)
    assert codes.dtype == torch.uint8 and int(codes.min()) >= 1 and int(codes.max()) <= 15
    spread = scale.float().repeat_interleave(128, 1)
    rest = (weight.float() - (codes.float() - 8) * spread).abs() / spread
    assert float(rest.max()) <= 0.5 + 7 / 256  # the scale is rounded to bfloat16
