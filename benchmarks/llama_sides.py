"""The formats that `decode_cuda.py` compares: ours, and torchao's where it is installed.

Both libraries quantize every linear layer, the head too and the embedding not, unless the name says
otherwise.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor_config

from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    quantize_,
)

INT4 = Int4WeightOnlyConfig(group_size=128)
FORMATS: dict[str, Any] = {
    "int4 g128": INT4,
    "int4 g128, bf16 head": FqnToConfig({"lm_head": None, "_default": INT4}),
    "int8 weight-only": Int8WeightOnlyConfig(),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "float8 weight-only": Float8WeightOnlyConfig(),
    "float8 dynamic": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    "float8 dynamic, tensor": Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor()),
    "float8 dynamic, blocks": Float8DynamicActivationFloat8WeightConfig(
        granularity=PerBlock((128, 128))
    ),
    "float8 x int4": Float8DynamicActivationInt4WeightConfig(),
}


@dataclass(frozen=True)
class Side:
    """A format: `quantize(model)` converts in place and gives the settings of Inductor that the
    library chose, which are to hold for this side alone."""

    name: str
    library: str
    quantize: Callable[[nn.Module], dict[str, Any]]


def ours(only: list[str] | None, bits: list[int]) -> list[Side]:
    """The formats named, or all; and intx weight-only of each number of bits."""
    configs = dict(FORMATS)
    for each in bits:
        dtype = getattr(torch, f"int{each}")
        config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(128))
        configs[f"int{each} g128 (intx)"] = config
    for name in only or []:
        if name not in configs and name != "bf16":
            raise SystemExit(f"no format is called {name!r}; there are {', '.join(configs)}")
    chosen = [n for n in configs if not only or n in only or n.endswith("(intx)")]
    return [Side(name, "ao", _our_way(configs[name])) for name in chosen]


def _our_way(config: Any) -> Callable[[nn.Module], dict[str, Any]]:
    def quantize(model: nn.Module) -> dict[str, Any]:
        quantize_(model, config, progress=False)
        return {}

    return quantize


def torchao() -> list[Side]:
    """torchao's formats, or none and the reason in a line."""
    try:
        from torchao import quantization as theirs
    except ImportError as error:
        print(f"torchao: absent: {error}")
        return []
    configs = {
        "int4 g128": theirs.Int4WeightOnlyConfig(
            group_size=128, int4_packing_format="tile_packed_to_4d"
        ),
        "int8 weight-only": theirs.Int8WeightOnlyConfig(),
        "int8 dynamic": theirs.Int8DynamicActivationInt8WeightConfig(),
        "float8 weight-only": theirs.Float8WeightOnlyConfig(),
        "float8 dynamic": theirs.Float8DynamicActivationFloat8WeightConfig(
            granularity=theirs.PerRow()
        ),
    }
    print(f"torchao {importlib.metadata.version('torchao')}")
    return [
        Side(f"torchao {name}", "torchao", _torchao_way(theirs.quantize_, config))
        for name, config in configs.items()
    ]


def _torchao_way(
    quantize_: Callable[[nn.Module, Any], None], config: Any
) -> Callable[[nn.Module], dict[str, Any]]:
    def quantize(model: nn.Module) -> dict[str, Any]:
        before = inductor_config.get_config_copy()
        quantize_(model, config)
        after = inductor_config.get_config_copy()
        inductor_config.load_config(before)
        return {name: value for name, value in after.items() if value != before[name]}

    return quantize
