"""The header of a checkpoint: JSON that says which plain tensors make up which quantized tensor.

It travels as the string-to-string metadata of a safetensors file; docs/formats.md specifies every key. Everything in
it is checked here, against the class that it names and without building a tensor, because a file may come from
anywhere. Messages name the tensor; who knows the file puts its name in front (`naming`).
"""

import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .config import AOBaseConfig, config_to_dict
from .errors import CheckpointError
from .tensor import QTensor, tensor_class

__all__ = ["Entry", "Header", "decode_header", "describe", "encode_header", "field_name"]

Entry = dict[str, Any]
"""The description of one quantized tensor: class, shape, dtype, fields, meta. JSON values only."""

FORMAT_VERSION = "1"
PREFIX = "ao_"  # keys of the metadata that are ours
MAX_NAME = 1024
MAX_DIMS = 16
MAX_SIZE = 2**63 - 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}


@dataclass(frozen=True)
class Header:
    """tensors  description of every quantized tensor, by name
    tied        name of a stored tensor -> the other names that share it
    config      the config that made the checkpoint, as JSON, or None; `config_from_dict` rebuilds it
    metadata    what else the writer put there
    """

    version: str = FORMAT_VERSION
    tensors: dict[str, Entry] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def field_name(name: str, field: str) -> str:
    """What a data field of the quantized tensor `name` is called among the plain tensors."""
    return f"{name}_{field}"


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Puts the file's name in front of every CheckpointError from inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


# ------------------------------------------------------------------------------------------ writing


def describe(name: str, q: QTensor) -> Entry:
    """The entry of a quantized tensor. TypeError if a reader could not know its class or its metadata."""
    kind = type(q).__name__
    try:
        known = tensor_class(kind) is type(q)
    except KeyError:
        known = False
    if not known:
        raise TypeError(f"{name} is a {kind}, which is not registered; decorate the class with @register_tensor")
    for key, value in q.metadata().items():
        if not (value is None or isinstance(value, (bool, int, float, str))):
            raise TypeError(f"{name}: a checkpoint holds numbers, strings, booleans and None, but {key} is {value!r}")
    fields = {k: {"dtype": _dtype_name(t.dtype), "shape": list(t.shape)} for k, t in q.tensors().items()}
    return {
        "class": kind,
        "shape": list(q.shape),
        "dtype": _dtype_name(q.dtype),
        "fields": fields,
        "meta": q.metadata(),
    }


def encode_header(
    entries: Mapping[str, Entry],
    *,
    tied: Mapping[str, list[str]] | None = None,
    config: AOBaseConfig | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The metadata of a safetensors file. `metadata` is passed through; its keys cannot begin with `ao_`."""
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps strings to strings, got {key!r}: {value!r}")
        if key.startswith(PREFIX):
            raise ValueError(f"metadata keys that begin with {PREFIX!r} are the checkpoint's own, got {key!r}")
    header = {"format": "pt", **(metadata or {}), "ao_format_version": FORMAT_VERSION, "ao_tensors": _json(entries)}
    if tied:
        header["ao_tied"] = _json(tied)
    if config is not None:
        header["ao_config"] = _json(config_to_dict(config))
    return header


def check_name(name: Any) -> str:
    """A tensor's name, or ValueError: names are never used as paths here, but others do that."""
    good = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable() and name != "__metadata__"
    if not good or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{_short(name)} cannot be the name of a tensor")
    return name


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------ reading


def strict_json(text: str, what: str) -> Any:
    """Parsed JSON. Broken syntax, a key given twice, NaN, huge numbers and hostile nesting raise CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise ValueError(f"{_short(twice)} is there twice")
        return result

    def integer(digits: str) -> int:
        if len(digits) > 20:
            raise ValueError("a number has more digits than any size")
        return int(digits)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON value")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=integer, parse_constant=constant)
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read: {error}") from error


def decode_header(metadata: Mapping[str, str]) -> Header:
    """The inverse of `encode_header`. Every entry is checked against the class that it names, or CheckpointError."""
    version = metadata.get("ao_format_version")
    if version is None:
        raise CheckpointError(
            "has no ao_format_version in its header, so it is not a checkpoint of this toolkit; "
            "safetensors.torch.load_file reads plain tensors"
        )
    if version not in _READERS:
        known = ", ".join(_READERS)
        raise CheckpointError(
            f"has format version {_short(version)}; this release of ao-core reads version {known}. A newer release may "
            "read it."
        )
    return _READERS[version](metadata)


def _read_v1(metadata: Mapping[str, str]) -> Header:
    unknown = [k for k in metadata if k.startswith(PREFIX) and k not in (*_KEYS_V1, "ao_format_version")]
    if unknown:
        raise CheckpointError(f"has the header key {_short(unknown[0])}, which format version 1 does not define")
    if "ao_tensors" not in metadata:
        raise CheckpointError("has no ao_tensors in its header")
    parts = {key: strict_json(metadata[key], key) for key in _KEYS_V1 if key in metadata}
    for key, value in parts.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"{key} is a JSON object, got {_short(value)}")
    for name, entry in parts["ao_tensors"].items():
        skeleton(name, entry)
    tied = parts.get("ao_tied", {})
    seen: set[str] = set()
    for name, others in tied.items():
        if not isinstance(others, list) or not others:
            raise CheckpointError(f"ao_tied: {_short(name)} has no list of names, but {_short(others)}")
        for other in (name, *others):
            checked_name(other)
            if other in seen:
                raise CheckpointError(f"ao_tied: {_short(other)} is there twice")
            seen.add(other)
    return Header(
        version="1",
        tensors=parts["ao_tensors"],
        tied=tied,
        config=parts.get("ao_config"),
        metadata={k: v for k, v in metadata.items() if not k.startswith(PREFIX)},
    )


_KEYS_V1 = ("ao_tensors", "ao_tied", "ao_config")
_READERS: dict[str, Callable[[Mapping[str, str]], Header]] = {"1": _read_v1}


def checked_name(name: Any) -> str:
    """`check_name` for names from a file."""
    try:
        return check_name(name)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def checked_shape(shape: Any, what: str) -> tuple[int, ...]:
    """A list of sizes from a file as a tuple."""
    good = isinstance(shape, list) and len(shape) <= MAX_DIMS and all(type(n) is int and n >= 0 for n in shape)
    if not good or math.prod(n or 1 for n in shape) > MAX_SIZE:
        raise CheckpointError(f"{what}: shape is a list of sizes, got {_short(shape)}")
    return tuple(shape)


# ------------------------------------------------------------------------------------------ one entry


def skeleton(name: str, entry: Any) -> QTensor:
    """The quantized tensor that an entry describes, on the meta device: it has all but values.

    CheckpointError unless the entry is complete and its class agrees with every shape, dtype and value in it.
    """
    checked_name(name)
    keys = ("class", "shape", "dtype", "fields", "meta")
    if not isinstance(entry, dict) or sorted(entry) != sorted(keys):
        raise CheckpointError(f"{name}: an entry of ao_tensors has the keys {', '.join(keys)}; got {_short(entry)}")
    cls = _class_of(name, entry["class"])
    shape = checked_shape(entry["shape"], name)
    dtype = _dtype_of(entry["dtype"], name)
    if not dtype.is_floating_point:
        raise CheckpointError(f"{name}: dtype is that of the float weight, got {entry['dtype']!r}")
    fields = _fields_of(name, cls, entry["fields"])
    _check_meta(name, cls, entry["meta"])
    try:
        q = cls(shape=torch.Size(shape), dtype=dtype, **fields, **entry["meta"])
        q.check()
    except Exception as error:  # whatever a class does with values that it cannot have
        raise CheckpointError(f"{name}: not a possible {cls.__name__}: {error}") from error
    return q


def _class_of(name: str, kind: Any) -> type[QTensor]:
    try:
        return tensor_class(kind) if isinstance(kind, str) else tensor_class(_short(kind))
    except KeyError as error:
        raise CheckpointError(
            f"{name}: {error.args[0]}. Import the package that defines it first (import ao_quant for Int8Tensor and IntxTensor)"
        ) from None


def _dtype_of(dtype: Any, what: str) -> torch.dtype:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{what}: unknown dtype {_short(dtype)}; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _fields_of(name: str, cls: type[QTensor], fields: Any) -> dict[str, Tensor]:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{name}: fields is a JSON object, got {_short(fields)}")
    missing = [f for f in cls._data if f not in fields and f not in cls._optional]
    unknown = [f for f in fields if f not in cls._data]
    if missing or unknown:
        allowed = ", ".join(cls._data)
        wrong = f"lacks the field {missing[0]}" if missing else f"has no field {_short(unknown[0])}"
        raise CheckpointError(f"{name}: a {cls.__name__} has the fields {allowed}; this one {wrong}")
    tensors = {}
    for key, value in fields.items():
        if not isinstance(value, dict) or sorted(value) != ["dtype", "shape"]:
            raise CheckpointError(f"{name}: field {key} is described by dtype and shape, got {_short(value)}")
        shape = checked_shape(value["shape"], f"{name}: field {key}")
        dtype = _dtype_of(value["dtype"], f"{name}: field {key}")
        tensors[key] = torch.empty(shape, dtype=dtype, device="meta")
    return tensors


def _check_meta(name: str, cls: type[QTensor], meta: Any) -> None:
    kinds = {k: kind for base in reversed(cls.__mro__) for k, kind in _annotations(base).items() if k in cls._meta}
    if not isinstance(meta, dict) or sorted(meta) != sorted(kinds):
        raise CheckpointError(f"{name}: the metadata of a {cls.__name__} is {', '.join(kinds)}; got {_short(meta)}")
    for key, value in meta.items():
        kind = kinds[key]
        allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            expected = " or ".join("null" if k is types.NoneType else getattr(k, "__name__", str(k)) for k in allowed)
            raise CheckpointError(f"{name}: {key} is {expected}, got {_short(value)}")


def _annotations(cls: type) -> dict[str, Any]:
    return inspect.get_annotations(cls, eval_str=True) if issubclass(cls, QTensor) else {}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
