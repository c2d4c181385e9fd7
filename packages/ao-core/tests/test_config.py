"""Configs and their JSON: what goes in comes out, and nothing else can be built from it."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch

from ao_core import granularity
from ao_core.config import (
    AOBaseConfig,
    config_from_dict,
    config_from_json,
    config_to_dict,
    config_to_json,
    register_config,
)
from ao_core.errors import ConfigError
from ao_core.granularity import (
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
)

ROW = PerRow()


@register_config
@dataclass(frozen=True, kw_only=True)
class InnerSample(AOBaseConfig):
    group_size: int = 128

    def __post_init__(self) -> None:
        if self.group_size % 8:
            raise ConfigError(f"InnerSample: group_size is a multiple of 8, got {self.group_size}")


@register_config
@dataclass(frozen=True, kw_only=True)
class OuterSample(AOBaseConfig):
    needed: str
    dtype: torch.dtype = torch.int4
    granularity: Granularity = ROW
    inner: AOBaseConfig | None = None
    rules: tuple[Any, ...] = ()
    share: float = 0.5
    flag: bool = False


@dataclass(frozen=True, kw_only=True)
class Unregistered(AOBaseConfig):
    pass


SAMPLES = [
    OuterSample(needed="x"),
    OuterSample(needed="", dtype=torch.float8_e4m3fn, flag=True, share=-1e-300),
    *(OuterSample(needed="dtype", dtype=getattr(torch, f"int{bits}")) for bits in range(1, 9)),
    *(
        OuterSample(needed="g", granularity=g)
        for g in (PerTensor(), PerRow(), PerToken(), PerAxis(-1), PerGroup(8), PerBlock((2, 3)))
    ),
    OuterSample(needed="deep", inner=OuterSample(needed="er", inner=InnerSample(group_size=8))),
    OuterSample(needed="pairs", rules=(("b", InnerSample()), ("a", None), (1, 2.5, (True, "é")))),
]


@pytest.mark.parametrize("config", SAMPLES, ids=lambda c: c.needed)
def test_round_trip(config: OuterSample) -> None:
    data = config_to_dict(config)
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert config_from_dict(data) == config
    again = config_from_json(config_to_json(config))
    assert again == config and hash(again) == hash(config)
    shuffled = json.loads(json.dumps(data, sort_keys=True))  # many writers sort keys
    assert config_from_dict(shuffled) == config
    assert all(
        type(getattr(again, f.name)) is type(getattr(config, f.name)) for f in fields(config)
    )


def test_the_json_is_what_the_documents_say() -> None:
    config = OuterSample(needed="x", granularity=PerGroup(32), rules=(("a", InnerSample()),))
    assert config_to_dict(config) == {
        "type": "OuterSample",
        "needed": "x",
        "dtype": {"dtype": "int4"},
        "granularity": {"type": "PerGroup", "group_size": 32},
        "inner": None,
        "rules": [["a", {"type": "InnerSample", "group_size": 128}]],
        "share": 0.5,
        "flag": False,
    }


def test_missing_fields_take_their_defaults() -> None:
    assert config_from_dict({"type": "InnerSample"}) == InnerSample()
    assert config_from_dict({"type": "OuterSample", "needed": "a"}) == OuterSample(needed="a")


def test_every_granularity_is_known() -> None:
    kinds = {name for name in granularity.__all__ if name.startswith("Per")}
    samples = {type(c.granularity).__name__ for c in SAMPLES}
    assert kinds == samples


OUTER = {"type": "OuterSample", "needed": "x"}
BAD = {
    "unknown type": ({"type": "Popen", "args": "ls"}, "unknown config type 'Popen'; registered:"),
    "a module's name": ({"type": "os.system"}, "unknown config type 'os.system'"),
    "not registered": ({"type": "Unregistered"}, "unknown config type 'Unregistered'"),
    "the base": ({"type": "AOBaseConfig"}, "unknown config type 'AOBaseConfig'"),
    "no type": ({"group_size": 8}, "unknown config type None"),
    "type of no kind": ({"type": ["InnerSample"]}, "unknown config type"),
    "empty": ({}, "unknown config type None"),
    "unknown field": (
        {"type": "InnerSample", "size": 8},
        "InnerSample has no field 'size'; its fields are group_size",
    ),
    "two unknown": (OUTER | {"b": 1, "a": 2}, "OuterSample has no field 'a', 'b'"),
    "dunder": (OUTER | {"__class__": 1}, "OuterSample has no field '__class__'"),
    "missing field": ({"type": "OuterSample"}, "OuterSample: .*needed"),
    "bad value": ({"type": "InnerSample", "group_size": 9}, "group_size is a multiple of 8, got 9"),
    "bad granularity": (
        OUTER | {"granularity": {"type": "PerGroup", "group_size": 0}},
        "PerGroup: group_size",
    ),
    "bad inner": (OUTER | {"inner": {"type": "Nothing"}}, "unknown config type 'Nothing'"),
    "dtype": (OUTER | {"dtype": {"dtype": "int99"}}, "dtype 'int99', which torch does not have"),
    "dtype that is none": (
        OUTER | {"dtype": {"dtype": "load"}},
        "dtype 'load', which torch does not",
    ),
    "dtype of a module": (OUTER | {"dtype": {"dtype": "nn.Linear"}}, "dtype 'nn.Linear'"),
    "dtype of no kind": (OUTER | {"dtype": {"dtype": 3}}, "dtype 3, which torch does not have"),
    "dtype alone": ({"dtype": "int4"}, "expected a config, the JSON describes a dtype"),
    "granularity alone": ({"type": "PerRow"}, "expected a config, the JSON describes a PerRow"),
    "list": ([], "expected a config, the JSON describes a tuple"),
    "number": (3, "expected a config, the JSON describes a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_json(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        config_from_dict(data)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        config_from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 100_000, '{"a":' * 100_000, "\0"])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ConfigError, match="a config is not valid JSON"):
        config_from_json(text)


def test_nesting_has_a_limit() -> None:
    for wrap in (lambda d: OUTER | {"inner": d}, lambda d: OUTER | {"rules": [d]}):
        data: Any = dict(OUTER)
        for _ in range(40):
            data = wrap(data)
        with pytest.raises(ConfigError, match="nested more than 16 deep"):
            config_from_dict(data)


@pytest.mark.parametrize("value", [torch.zeros(1), object(), {"a": 1}, {1}, torch.device("cpu")])
def test_configs_hold_data_only(value: Any) -> None:
    with pytest.raises(TypeError, match="a config cannot hold a"):
        config_to_dict(OuterSample(needed="x", rules=(value,)))


def test_only_registered_configs_are_written() -> None:
    with pytest.raises(TypeError, match=r"cannot hold a Unregistered .*; is its type registered"):
        config_to_dict(Unregistered())
    with pytest.raises(TypeError, match=r"expected a config .AOBaseConfig., got dict"):
        config_to_dict({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got PerRow"):
        config_to_dict(PerRow())  # type: ignore[arg-type]


def test_registering() -> None:
    assert register_config(InnerSample) is InnerSample
    with pytest.raises(TypeError, match="does not derive from AOBaseConfig"):
        register_config(dict)
    other = dataclass(frozen=True, kw_only=True)(type("InnerSample", (AOBaseConfig,), {}))
    with pytest.raises(TypeError, match="a config named InnerSample is registered already"):
        register_config(other)
    with pytest.raises(TypeError, match="a config named PerRow is registered already"):
        register_config(type("PerRow", (AOBaseConfig,), {}))


def test_configs_are_values() -> None:
    config = InnerSample()
    assert replace(config, group_size=64) == InnerSample(group_size=64) != config
    with pytest.raises(AttributeError):
        config.group_size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        InnerSample(64)  # type: ignore[misc]
