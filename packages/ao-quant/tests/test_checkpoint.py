"""ao-quant's tensors in checkpoints: round trip, and files that lie."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ao_core import checkpoint
from ao_core.config import AOBaseConfig
from ao_core.errors import CheckpointError
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerBlock,
    PerGroup,
    PerTensor,
    quantize_,
)

CONFIGS: dict[str, AOBaseConfig] = {
    "int8": Int8WeightOnlyConfig(),
    "int8 tensor": Int8WeightOnlyConfig(granularity=PerTensor()),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "int4": Int4WeightOnlyConfig(group_size=32, algorithm="hqq"),
    "int3": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32)),
    "int8 static": Int8StaticActivationInt8WeightConfig(activation_range=4.0),
    "float8": Float8WeightOnlyConfig(),
    "float8 e5m2": Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, granularity=PerGroup(32)),
    "float8 tensor": Float8DynamicActivationFloat8WeightConfig(),
    "float8 block": Float8DynamicActivationFloat8WeightConfig(granularity=PerBlock((128, 128))),
    "float8 static": Float8StaticActivationFloat8WeightConfig(activation_range=4.0),
    "float8 int4": Float8DynamicActivationInt4WeightConfig(group_size=32),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 80)
        self.mix = nn.Conv2d(80, 80, 1)
        self.experts = nn.ParameterDict({"up": torch.randn(3, 16, 80)})
        self.head = nn.Linear(80, 24, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        h = self.mix(self.embed(indices).T[None, :, :, None])[0, :, :, 0].T
        up = nn.functional.linear(h, self.experts["up"][1])
        return self.head(h) + up.sum(1, keepdim=True)


def quantized(config: AOBaseConfig) -> Model:
    torch.manual_seed(0)
    model = Model()
    quantize_(
        model, FqnToConfig({"embed": config, "head": config, "mix": config, "experts": config})
    )
    return model


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("path", ["model.safetensors", "folder"])
def test_round_trip(name: str, path: str, tmp_path: Path) -> None:
    model, indices = quantized(CONFIGS[name]), torch.arange(24)
    checkpoint.save(model, tmp_path / path, config=CONFIGS[name], max_shard_size=2000)
    fresh = Model()
    checkpoint.load(tmp_path / path, model=fresh)
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh(indices), model(indices))
    for key, t in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], t), key
    assert checkpoint.load_config(tmp_path / path) == CONFIGS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": {"bits": 9}}, "bits"),
        ({"meta": {"bits": 3}}, "codes"),
        ({"meta": {"group_size": 0}}, "group_size"),
        ({"meta": {"group_size": 64}}, "scale"),
        ({"meta": {"activation": "int2"}}, "activation"),
        ({"meta": {"mapping": "affine"}}, "mapping"),
        ({"meta": {"algorithm": "magic"}}, "algorithm"),
        ({"meta": {"trailing": 7}}, "trailing"),
        ({"class": "Int8Tensor"}, "embed.weight"),
        ({"shape": [24, 96]}, "embed.weight"),
    ],
)
def test_headers_that_lie(change: dict, message: str, tmp_path: Path) -> None:
    check_lie("int4", change, message, tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("float8", {"meta": {"block_rows": 0}}, "block_rows"),
        ("float8", {"meta": {"block_rows": 2}}, "scale"),
        ("float8", {"meta": {"block_rows": None}}, "scale"),
        ("float8", {"meta": {"block_rows": "1"}}, "block_rows"),
        ("float8", {"meta": {"group_size": 8}}, "scale"),
        ("float8", {"meta": {"activation": "int8_static"}}, "activation"),
        ("float8", {"meta": {"activation": "float8_static"}}, "x_scale"),
        ("float8 static", {"meta": {"activation": "float8_row"}}, "x_scale"),
        ("int8 static", {"meta": {"activation": "int8_symmetric"}}, "x_scale"),
        ("int8", {"meta": {"activation": "int8_asymmetric"}}, "activation"),
        ("int3", {"meta": {"activation": "float8_row"}}, "4 bits"),
        ("int8", {"class": "Float8Tensor"}, "block_rows"),
    ],
)
def test_headers_that_lie_about_float8_and_static(
    name: str, change: dict, message: str, tmp_path: Path
) -> None:
    check_lie(name, change, message, tmp_path)


def check_lie(name: str, change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save(quantized(CONFIGS[name]), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    entries = json.loads(metadata["ao_tensors"])
    for key, value in change.items():
        if isinstance(value, dict):
            entries["embed.weight"][key] |= value
        else:
            entries["embed.weight"][key] = value
    metadata["ao_tensors"] = json.dumps(entries)
    save_file(load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=r"embed\.weight") as caught:
        checkpoint.load(path)
    assert message in str(caught.value)
