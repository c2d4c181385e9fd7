"""Configs: data that says what to do to a model, and its JSON.

A config is a frozen, keyword-only dataclass that derives from `AOBaseConfig` and is registered by
name:

    @register_config
    @dataclass(frozen=True, kw_only=True)
    class Int4WeightOnlyConfig(AOBaseConfig):
        group_size: int = 128

It holds no tensors, devices, layouts or kernel choices, checks itself when built (`__post_init__`),
and travels as

    {"type": "Int4WeightOnlyConfig", "group_size": 128}

Only registered names are ever looked up, and a field that the class does not have is refused, so
reading a config from a file can build nothing else. Dtypes travel as {"dtype": "int4"},
granularities like configs. Mappings whose order matters travel as lists of pairs, because many
writers of JSON sort keys.
"""

import json
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from . import granularity
from .errors import ConfigError

__all__ = [
    "AOBaseConfig",
    "config_from_dict",
    "config_from_json",
    "config_to_dict",
    "config_to_json",
    "register_config",
]

C = TypeVar("C", bound=type)
MAX_DEPTH = 16  # deeper JSON than any config needs is refused before it is walked


@dataclass(frozen=True, kw_only=True)
class AOBaseConfig:
    """Base of every config. Compare with ==, change with `dataclasses.replace`."""


_TYPES: dict[str, type] = {
    name: getattr(granularity, name) for name in granularity.__all__ if name.startswith("Per")
}


def register_config(cls: C) -> C:
    """Class decorator: make `cls` known to `config_from_dict` by its class name."""
    if not issubclass(cls, AOBaseConfig):
        raise TypeError(f"register_config: {cls.__name__} does not derive from AOBaseConfig")
    if _TYPES.setdefault(cls.__name__, cls) is not cls:
        raise TypeError(f"register_config: a config named {cls.__name__} is registered already")
    return cls


def config_to_dict(config: AOBaseConfig) -> dict[str, Any]:
    """A config as a dict of JSON values; TypeError for anything that is not a registered config."""
    if not isinstance(config, AOBaseConfig):
        raise TypeError(
            f"config_to_dict: expected a config (AOBaseConfig), got {type(config).__name__}"
        )
    return _encode(config)


def config_from_dict(data: dict[str, Any]) -> AOBaseConfig:
    """The inverse of `config_to_dict`. Unknown types, unknown or missing fields and bad values
    raise ConfigError."""
    config = _decode(data, 0)
    if not isinstance(config, AOBaseConfig):
        raise ConfigError(f"expected a config, the JSON describes a {type(config).__name__}")
    return config


def config_to_json(config: AOBaseConfig) -> str:
    """A config as one line of JSON."""
    return json.dumps(config_to_dict(config))


def config_from_json(text: str) -> AOBaseConfig:
    """The inverse of `config_to_json`."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"a config is not valid JSON: {error}") from error
    return config_from_dict(data)


def _encode(value: Any) -> Any:
    name = type(value).__name__
    if _TYPES.get(name) is type(value):
        return {"type": name} | {f.name: _encode(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"a config cannot hold a {type(value).__name__} ({value!r}); is its type registered?"
    )


def _decode(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ConfigError(f"a config's JSON is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list):
        return tuple(_decode(item, depth + 1) for item in value)
    if not isinstance(value, dict):
        return value
    if set(value) == {"dtype"}:
        dtype = getattr(torch, value["dtype"], None) if isinstance(value["dtype"], str) else None
        if not isinstance(dtype, torch.dtype):
            raise ConfigError(
                f"a config names the dtype {value['dtype']!r}, which torch does not have"
            )
        return dtype
    name = value.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise ConfigError(f"unknown config type {name!r}; registered: {', '.join(sorted(_TYPES))}")
    cls = _TYPES[name]
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(value) - set(known) - {"type"})
    if unknown:
        raise ConfigError(
            f"{name} has no field {', '.join(map(repr, unknown))}; its fields are "
            f"{', '.join(known)}"
        )
    arguments = {k: _decode(v, depth + 1) for k, v in value.items() if k != "type"}
    try:
        return cls(**arguments)
    except TypeError as error:  # a missing field
        raise ConfigError(f"{name}: {error}") from error
