"""Reports say which kernel each layer runs, and where bfloat16 was measured to be faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ao_core.config import AOBaseConfig
from ao_kernels import OPS, force, tuned
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)

CONFIGS = (  # one for each op
    Float8DynamicActivationFloat8WeightConfig(),
    Float8DynamicActivationInt4WeightConfig(),
    Float8StaticActivationFloat8WeightConfig(activation_range=4.0),
    Float8WeightOnlyConfig(),
    Int4WeightOnlyConfig(),
    Int8DynamicActivationInt4WeightConfig(),
    Int8DynamicActivationInt8WeightConfig(),
    Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int3),
    Int8StaticActivationInt8WeightConfig(activation_range=4.0),
    Int8WeightOnlyConfig(),
    IntxWeightOnlyConfig(weight_dtype=torch.int2),
)
TABLE = tuned.Table(
    "a test",
    [tuned.Row("int8_linear", "row", 64, 128, (1, 64), {"bf16": (9.0, 13.4), "cpu": (5.0, 16.0)})],
    {},
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU are known to the table above."""
    monkeypatch.setattr(tuned, "table_of", lambda device: TABLE)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 64, 128))


def model() -> nn.Sequential:
    layers = [nn.Linear(128, 64), nn.Linear(64, 128, bias=False), nn.Linear(128, 64)]
    return nn.Sequential(*layers, nn.Conv2d(128, 32, 1)).bfloat16()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_the_kernel_of_every_format_is_the_one_that_runs(
    config: AOBaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Linear(128, 64)).bfloat16()
    report = quantize_(net, config)
    (row,) = report.kernels(net, tokens=5)
    assert (row.fqn, row.shape, row.tokens, row.warning) == ("0.weight", (64, 128), 5, "")
    ran = []

    def noting(kernel: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: ran.append(kernel) or function(*args)

    for op in OPS.values():  # not past the choice: no direct entries
        monkeypatch.setattr(op, "_on_cpu", ())
        monkeypatch.setattr(op, "_entries", {})
        monkeypatch.setattr(op, "reference", noting("reference", op.reference))
        noted = [dataclasses.replace(k, run=noting(k.name, k.run)) for k in op.kernels]
        monkeypatch.setattr(op, "kernels", noted)
    net(torch.randn(5, 128).bfloat16())
    assert ran == [row.kernel]


def test_where_bf16_would_be_faster(measured: None) -> None:
    net = model()
    report = quantize_(net, Int8WeightOnlyConfig(), lambda module, name: name != "1")
    rows = {(row.fqn, row.tokens): row for row in report.kernels(net, tokens=(1, 64))}
    assert len(rows) == 2 * 3
    assert rows["0.weight", 1].warning == ""
    assert rows["0.weight", 64].warning == (
        "bf16 would be faster: measured 16.0 us against 13.4 us at 64 tokens of 64 x 128 on a test"
    )
    table = report.kernel_table(net, tokens=(1, 64)).splitlines()
    assert table[0].split() == ["layers", "first", "shape", "format", "tokens", "kernel"]
    assert len(table) == 1 + 4
    assert [line.split()[:3] for line in table[1:3]] == [["2", "0.weight", "64x128"]] * 2
    assert table[2].endswith("on a test") and "faster" not in table[1]


def test_layers_that_multiply_nothing_have_no_row() -> None:
    net = nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 20, bias=False))
    net[1].weight = net[0].weight
    report = quantize_(net, Int8WeightOnlyConfig(), lambda module, name: True)
    assert [row.status for row in report.rows] == ["converted", "tied"]
    assert [row.fqn for row in report.kernels(net)] == ["1.weight"]


def test_experts_are_asked_for_one_of_them() -> None:
    net = Experts()
    report = quantize_(net, FqnToConfig({"up": Int4WeightOnlyConfig(group_size=32)}))
    (row,) = report.kernels(net, tokens=2)
    assert row.shape == (3, 64, 128) and row.kernel in ("cpu", "reference")


def test_another_model_is_refused() -> None:
    net = model()
    report = quantize_(net, Int8WeightOnlyConfig())
    for other in (model(), nn.Linear(4, 4)):
        with pytest.raises(ValueError, match=r"0\.weight is no quantized weight of this model"):
            report.kernels(other)


def test_a_forced_backend_is_what_runs() -> None:
    net = model()
    report = quantize_(net, Int8WeightOnlyConfig())
    before = force("reference")
    try:
        assert {row.kernel for row in report.kernels(net)} == {"reference"}
    finally:
        force(before)


def test_asking_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    report = quantize_(net, Int8WeightOnlyConfig(), lambda module, name: bool(name))

    def fails(*args: Tensor) -> Tensor:
        raise AssertionError("an op was computed")

    for op in OPS.values():
        monkeypatch.setattr(op, "_run", fails)
        monkeypatch.setattr(op, "_on_cpu", (fails,))
    assert len(report.kernels(net, tokens=(1, 1000))) == 8
