"""Static activation ranges: recorded on a float model, applied while another is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import assert_same_state, difference, load, logits
from torch import nn

from ao_core.config import AOBaseConfig
from ao_core.errors import ConversionError
from ao_hf import AoConfig
from ao_quant import (
    Float8StaticActivationFloat8WeightConfig,
    Int8StaticActivationInt8WeightConfig,
    observe_activations,
    quantize_,
    with_activation_ranges,
)

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize(
    "config", [Int8StaticActivationInt8WeightConfig(), Float8StaticActivationFloat8WeightConfig()]
)
def test_ranges_from_a_float_model(
    config: AOBaseConfig, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def inner(module: nn.Module, fqn: str) -> bool:
        return isinstance(module, nn.Linear) and fqn != "lm_head"

    model = load(checkpoint("tied"))
    exact = logits(model)
    with observe_activations(model, inner) as ranges:
        logits(model)
    assert len(ranges) == 14 and torch.equal(logits(model), exact)
    rules = with_activation_ranges(config, ranges)
    quantized = load(checkpoint("tied"), AoConfig(rules))
    assert difference(exact, logits(quantized)) < 0.25
    quantize_(model, rules)
    assert_same_state(model, quantized)
    quantized.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert_same_state(quantized, again)
    assert torch.equal(logits(quantized), logits(again))
    assert again.config.quantization_config.quant_type == rules


def test_a_config_without_ranges_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConversionError, match="has no activation range"):
        load(checkpoint("llama"), Int8StaticActivationInt8WeightConfig())
