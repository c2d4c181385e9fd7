"""AoConfig and its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FORMATS, INT4, INT8
from transformers import LlamaConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from ao_core.errors import ConfigError
from ao_hf import AoConfig
from ao_quant import FqnToConfig, Int8WeightOnlyConfig, PerGroup

RULES = FqnToConfig({"re:.*up_proj": INT8, "lm_head": None, "re:.*proj": INT4, "_default": INT8})
CONFIGS = [
    *(AoConfig(config) for config in FORMATS.values()),
    AoConfig(RULES, ["lm_head", r"model\.layers\.1\..*"], include_embedding=True),
    AoConfig(quant_type=Int8WeightOnlyConfig(granularity=PerGroup(64)), modules_to_not_convert=[]),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c.quant_type).__name__)
def test_survives_config_json(config: AoConfig, tmp_path: Path) -> None:
    """Transformers sorts the keys there; rules keep their order all the same."""
    LlamaConfig(quantization_config=config).save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert text["quant_method"] == "ao"
    read = AutoQuantizationConfig.from_dict(text)
    assert read == config and read.quant_type == config.quant_type
    assert AoConfig.from_dict(json.loads(config.to_json_string())) == config
    assert repr(config).startswith("AoConfig")


def test_equality_is_of_values() -> None:
    assert AoConfig(INT4) == AoConfig(INT4) != AoConfig(INT8)
    assert AoConfig(INT4) != AoConfig(INT4, include_embedding=True)
    assert AoConfig(INT4, ["lm_head"]) != AoConfig(INT4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_typ": {}}, "no field 'quant_typ'; its fields are quant_type, modules"),
        ({"quant_type": "int4"}, "quant_type is a JSON object, got 'int4'"),
        ({"quant_type": {"type": "os.system"}}, "unknown config type 'os.system'"),
        ({"quant_type": {"type": "Int4WeightOnlyConfig", "bits": 3}}, "no field 'bits'"),
        ({"quant_type": {"type": "Int4WeightOnlyConfig", "group_size": 12}}, "multiple of 8"),
        ({"modules_to_not_convert": "lm_head"}, "is a list of names, got 'lm_head'"),
        ({"modules_to_not_convert": ["*.q_proj"]}, "neither a name nor a pattern"),
        ({"include_embedding": 1}, "True or False"),
    ],
)
def test_bad_json_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AoConfig.from_dict(AoConfig(INT4).to_dict() | change)


def test_missing_quant_type() -> None:
    with pytest.raises(ConfigError, match="quant_type is a JSON object, got None"):
        AoConfig.from_dict({"quant_method": "ao"})


@pytest.mark.parametrize("given", ["int4", None, torch.int4, {"type": "Int4WeightOnlyConfig"}])
def test_only_configs_are_taken(given: Any) -> None:
    with pytest.raises(ConfigError, match="quant_type is a config such as"):
        AoConfig(given)
