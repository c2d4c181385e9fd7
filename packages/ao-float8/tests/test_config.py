"""Configs: recipes by name, JSON, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ao_core.config import config_from_json, config_to_json
from ao_core.errors import ConfigError
from ao_float8 import Float8LinearConfig
from ao_float8.config import RECIPES

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_survive_json(recipe: str) -> None:
    config = Float8LinearConfig.from_recipe_name(recipe)
    assert config_from_json(config_to_json(config)) == config
    other = dataclasses.replace(config, emulate=True, weight_cache="step")
    assert config_from_json(config_to_json(other)) == other != config


def test_recipes_are_what_their_names_say() -> None:
    recipe = Float8LinearConfig.from_recipe_name
    assert recipe("tensorwise") == Float8LinearConfig()
    assert recipe("tensorwise").grad_output_dtype == E5M2
    for name in ("rowwise", "rowwise_with_gw_hp"):
        config = recipe(name)
        assert config.scaling == "rowwise" and config.round_scales_to_power_of_2
        assert config.grad_output_dtype == config.input_dtype == config.weight_dtype == E4M3
        assert config.grad_weight_in_high_precision == name.endswith("gw_hp")
    assert recipe("blockwise").scaling == "blockwise" and recipe("mxfp8").scaling == "mx"
    assert recipe("int8").input_dtype == torch.int8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scaling": "columnwise"}, "scaling is 'tensorwise' or 'rowwise'"),
        ({"weight_cache": True}, "weight_cache is 'pass' or 'scale' or 'step' or 'off'"),
        ({"weight_cache": "scale", "scaling": "rowwise"}, "needs scaling='tensorwise'"),
        ({"recompute_casts": "yes"}, "recompute_casts is True or False"),
        ({"emulate": 1}, "emulate is True or False"),
        ({"input_dtype": torch.bfloat16}, "input_dtype is torch.bfloat16; .* both operands"),
        ({"weight_dtype": None}, "weight_dtype is None; .* both operands"),
        ({"weight_dtype": torch.int8}, "weight_dtype is torch.int8"),
        ({"scaling": "int8"}, "input_dtype is torch.float8_e4m3fn; with scaling='int8'"),
        ({"weight_dtype": E5M2}, "weight_dtype are both torch.float8_e5m2"),
        ({"input_dtype": E5M2}, r"grad_output_dtype and input_dtype are both .* \(wgrad\)"),
        (
            {"scaling": "rowwise", "enable_fsdp_float8_all_gather": True},
            "needs scaling='tensorwise'",
        ),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Float8LinearConfig(**changes)


def test_e5m2_pairs_that_no_product_has_are_allowed() -> None:
    Float8LinearConfig(scaling="rowwise", input_dtype=E5M2, grad_weight_in_high_precision=True)


def test_unknown_recipes_name_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no recipe is named 'rowise'; there are tensorwise"):
        Float8LinearConfig.from_recipe_name("rowise")
