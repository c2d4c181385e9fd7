"""Ranges of activations: recorded from data, carried by configs, applied by quantize_."""

import pytest
import torch
from torch import Tensor, nn

from ao_core.config import AOBaseConfig, config_from_json, config_to_json
from ao_core.errors import ConfigError, ConversionError
from ao_quant import (
    Float8StaticActivationFloat8WeightConfig,
    FqnToConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    observe_activations,
    quantize_,
    with_activation_ranges,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def sqnr_db(exact: Tensor, got: Tensor) -> float:
    exact, got = exact.detach().double(), got.detach().double()
    return float(20 * torch.log10(exact.norm() / (exact - got).norm()))


def test_the_largest_magnitude_of_all_calls() -> None:
    model, batches = Model(), [torch.randn(5, 64), torch.randn(2, 3, 64) * 4, torch.randn(0, 64)]
    with observe_activations(model) as ranges:
        for batch in batches:
            model(batch)
        assert ranges == {}
    inner = [torch.relu(model.up(b)) for b in batches]
    assert ranges == {
        "up": max(b.abs().amax().item() for b in batches if b.numel()),
        "down": max(b.abs().amax().item() for b in inner if b.numel()),
    }
    assert not model.up._forward_pre_hooks and not model.down._forward_pre_hooks


@pytest.mark.parametrize(
    ("config", "high", "least"),
    [
        (Int8StaticActivationInt8WeightConfig(), 127, 34),
        (Float8StaticActivationFloat8WeightConfig(), 448, 25),
    ],
)
def test_from_data_to_a_quantized_model(config: AOBaseConfig, high: float, least: float) -> None:
    model, x = Model(), torch.randn(100, 64)
    exact = model(x)
    with observe_activations(model) as ranges:
        model(x)
    rules = with_activation_ranges(config, ranges)
    assert config_from_json(config_to_json(rules)) == rules
    report = quantize_(model, rules)
    assert len(report.converted) == 2
    for name in ("up", "down"):
        expected = torch.tensor([[ranges[name] / high]])
        assert torch.equal(getattr(model, name).weight.x_scale, expected)
    assert sqnr_db(exact, model(x)) >= least
    assert sqnr_db(exact, model(x * 3) / 3) < least - 10  # what is beyond the range is cut


def test_arguments_by_name() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    with observe_activations(layer) as ranges:
        layer(input=x)
    assert ranges == {"": x.abs().max().item()}


def test_rules_can_be_joined_and_modules_chosen() -> None:
    model, x = Model(), torch.randn(9, 64)
    with observe_activations(model, lambda module, fqn: fqn == "down") as ranges:
        model(x)
    assert set(ranges) == {"down"}
    rules = with_activation_ranges(Int8StaticActivationInt8WeightConfig(), ranges)
    quantize_(model, FqnToConfig({**dict(rules), "up": Int8WeightOnlyConfig()}))
    assert model.up.weight.activation is None and model.down.weight.activation == "int8_static"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "up: saw no floating tensor\n  down: saw no floating tensor"),
        (torch.zeros(2, 64), "up: saw only zeros"),
        (torch.full((2, 64), torch.nan), "up: saw NaN or inf"),
        (torch.full((2, 64), torch.inf), "up: saw NaN or inf"),
    ],
)
def test_data_that_gives_no_range(x: Tensor | None, message: str) -> None:
    model = Model()
    with pytest.raises(ConversionError, match=message), observe_activations(model) as ranges:
        if x is not None:
            model(x)
    assert ranges == {} and not model.up._forward_pre_hooks


def test_an_exception_inside_is_the_users() -> None:
    model = Model()
    with pytest.raises(KeyError), observe_activations(model):
        raise KeyError("batch")
    assert not model.up._forward_pre_hooks


def test_refusals() -> None:
    with (
        pytest.raises(ConversionError, match="the model has no Linear"),
        observe_activations(nn.ReLU()),
    ):
        pass
    with pytest.raises(ConfigError, match="Int8WeightOnlyConfig has no activation_range"):
        with_activation_ranges(Int8WeightOnlyConfig(), {"up": 1.0})
    with pytest.raises(ConfigError, match="there are no ranges"):
        with_activation_ranges(Int8StaticActivationInt8WeightConfig(), {})
    model = Model()
    with pytest.raises(ConversionError, match=r"up\.weight: has no activation range"):
        quantize_(model, Float8StaticActivationFloat8WeightConfig())
    assert type(model.up.weight) is nn.Parameter


def test_update_keeps_the_range() -> None:
    model = Model()
    quantize_(model, Float8StaticActivationFloat8WeightConfig(activation_range=3.0))
    x_scale = model.up.weight.x_scale.clone()
    model.up.weight.update_(torch.randn(96, 64))
    assert torch.equal(model.up.weight.x_scale, x_scale)
