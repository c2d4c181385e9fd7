"""The header of a checkpoint: JSON that says which plain tensors make up which quantized tensor.

It travels as the string-to-string metadata of a safetensors file; docs/formats.md specifies every
key. A file may come from anywhere, so what is read here is checked before it is believed. Messages
name the tensor; who knows the file puts its name in front (`naming`).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .config import AOBaseConfig, config_to_dict
from .errors import CheckpointError

__all__ = ["DTYPES", "Entry", "Header", "decode_header", "encode_header"]

Entry = dict[str, Any]
"""What a header says of one quantized tensor: class, shape, dtype, fields, meta. JSON values."""

FORMAT_VERSION = "1"
PREFIX = "ao_"  # of the metadata keys that are ours
MAX_NAME = 1024
MAX_DIMS = 16
MAX_ELEMENTS = 2**63 - 1

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
"""Every dtype that a checkpoint can hold, by the name that headers use."""


@dataclass(frozen=True)
class Header:
    """What the header of a checkpoint says.

    tensors   the entry of every quantized tensor, by name
    tied      name of a stored tensor -> the other names that share it
    config    the config that made the checkpoint, as JSON; `config_from_dict` rebuilds it
    metadata  what else the writer put there
    """

    version: str = FORMAT_VERSION
    tensors: dict[str, Entry] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Puts the file's name in front of every CheckpointError from inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


# --- writing


def encode_header(
    entries: Mapping[str, Entry],
    *,
    tied: Mapping[str, list[str]] | None = None,
    config: AOBaseConfig | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The metadata of a safetensors file.

    `metadata` is passed through; its keys cannot begin with `ao_`. Transformers asks for a
    "format", which is "pt" unless `metadata` says otherwise.
    """
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps strings to strings, got {key!r}: {value!r}")
        if key.startswith(PREFIX):
            raise ValueError(f"metadata keys cannot begin with {PREFIX!r}, got {key!r}")
    header = {"format": "pt", **(metadata or {}), "ao_format_version": FORMAT_VERSION}
    header["ao_tensors"] = _json(entries)
    if tied:
        header["ao_tied"] = _json(tied)
    if config is not None:
        header["ao_config"] = _json(config_to_dict(config))
    return header


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


# --- reading


def decode_header(metadata: Mapping[str, str]) -> Header:
    """The inverse of `encode_header`; CheckpointError for what no release could have written.

    Entries are checked by `unflatten`, which knows their classes.
    """
    version = metadata.get("ao_format_version")
    if version is None:
        raise CheckpointError(
            "has no ao_format_version in its header, so it is not a checkpoint of this toolkit; "
            "safetensors.torch.load_file reads plain tensors"
        )
    if version not in _READERS:
        raise CheckpointError(
            f"has format version {short(version)}, and this release of ao-core reads version "
            f"{', '.join(_READERS)}; a newer release may read it"
        )
    return _READERS[version](metadata)


def _read_v1(metadata: Mapping[str, str]) -> Header:
    keys = ("ao_tensors", "ao_tied", "ao_config")
    for key in metadata:
        if key.startswith(PREFIX) and key not in (*keys, "ao_format_version"):
            raise CheckpointError(f"has the key {short(key)}, which format version 1 does not know")
    if "ao_tensors" not in metadata:
        raise CheckpointError("has no ao_tensors in its header")
    parts = {key: strict_json(metadata[key], key) for key in keys if key in metadata}
    for key, value in parts.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"{key} is a JSON object, got {short(value)}")
    return Header(
        version="1",
        tensors={checked_name(name): entry for name, entry in parts["ao_tensors"].items()},
        tied=_checked_tied(parts.get("ao_tied", {})),
        config=parts.get("ao_config"),
        metadata={key: value for key, value in metadata.items() if not key.startswith(PREFIX)},
    )


_READERS: dict[str, Callable[[Mapping[str, str]], Header]] = {"1": _read_v1}


def _checked_tied(tied: dict[str, Any]) -> dict[str, list[str]]:
    seen: set[str] = set()
    for name, others in tied.items():
        if not isinstance(others, list) or not others:
            raise CheckpointError(f"ao_tied gives {short(name)} no list of names: {short(others)}")
        for each in (name, *others):
            if checked_name(each) in seen:
                raise CheckpointError(f"ao_tied names {short(each)} twice")
            seen.add(each)
    return tied


def strict_json(text: str, what: str) -> Any:
    """Parsed JSON; CheckpointError for broken syntax, a key given twice, NaN, hostile nesting."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"{short(key)} is there twice")
            result[key] = value
        return result

    def integer(digits: str) -> int:
        if len(digits) > 20:  # Python before 3.11 takes quadratic time for long ones
            raise ValueError(f"{digits[:20]}... is no size")
        return int(digits)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON value")

    hooks: dict[str, Any] = {"parse_int": integer, "parse_constant": constant}
    try:
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read: {error}") from error


# --- values


def check_name(name: Any) -> str:
    """A tensor's name, or ValueError. Names are never used as paths here, but others do that."""
    text = name if isinstance(name, str) else ""
    parts = text.split("/")
    if not 0 < len(text) <= MAX_NAME or not text.isprintable() or text == "__metadata__":
        raise ValueError(f"{short(name)} cannot be the name of a tensor")
    if "\\" in text or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{short(name)} looks like a path and cannot be the name of a tensor")
    return text


def checked_name(name: Any) -> str:
    """`check_name` for names from a file."""
    try:
        return check_name(name)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def checked_shape(shape: Any, what: str) -> tuple[int, ...]:
    """A list of sizes from a file, as a tuple."""
    good = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not good or len(shape) > MAX_DIMS or math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
        raise CheckpointError(f"{what}: a shape is a list of sizes, got {short(shape)}")
    return tuple(shape)


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
