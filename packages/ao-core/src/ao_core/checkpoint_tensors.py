"""State dicts with quantized tensors <-> plain tensors and the header entries that explain them.

Whoever writes safetensors files in a way of their own (Transformers shards them itself) needs only
`flatten` and `unflatten` from here and `encode_header` and `decode_header`.
"""

import functools
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .checkpoint_header import DTYPES, Entry, check_name, checked_name, checked_shape, short
from .errors import CheckpointError
from .tensor import QTensor, tensor_class

__all__ = ["check_fields", "field_name", "find_tied", "flatten", "skeleton", "unflatten"]

ENTRY_KEYS = ("class", "shape", "dtype", "fields", "meta")


class Described(Protocol):
    """What has a dtype and a shape: a tensor, or its description in a file."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def field_name(name: str, field: str) -> str:
    """What a data field of the quantized tensor `name` is called among the plain tensors."""
    return f"{name}_{field}"


# --- writing


def flatten(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Entry]]:
    """Plain tensors, and the header entries of the quantized ones among them.

    A QTensor `name` becomes `<name>_<field>` for each data field that it has; everything else keeps
    its name. Nothing is copied. TypeError or ValueError name the tensor that a file cannot hold.
    """
    plain: dict[str, Tensor] = {}
    entries: dict[str, Entry] = {}
    for name, t in state_dict.items():
        check_name(name)
        parts = {name: t}
        if isinstance(t, QTensor):
            entries[name] = _describe(name, t)
            parts = {field_name(name, field): value for field, value in t.tensors().items()}
        for part, value in parts.items():
            if part in plain or (part != name and part in state_dict):
                raise ValueError(f"{name}: stored as {part}, but another tensor has that name")
            _check_storable(part, value)
            plain[part] = value.detach()
    return plain, entries


def find_tied(state_dict: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names that hold one and the same tensor: the first of them -> the others."""
    groups: dict[Any, list[str]] = {}
    for name, t in state_dict.items():
        groups.setdefault(_place(t), []).append(name)
    return {first: others for first, *others in groups.values() if others}


def _place(t: Any) -> Any:
    """Equal for tensors that are the same values in the same memory."""
    if isinstance(t, QTensor):
        fields = tuple((name, _place(value)) for name, value in t.tensors().items())
        return type(t), tuple(t.shape), t.dtype, repr(t.metadata()), fields
    if not isinstance(t, Tensor) or t.layout != torch.strided or is_traceable_wrapper_subclass(t):
        return id(t)
    if t.is_meta or not t.numel():
        return id(t)
    return t.device, t.data_ptr(), t.dtype, tuple(t.shape), t.stride()


def _describe(name: str, q: QTensor) -> Entry:
    kind = type(q).__name__
    try:
        known = tensor_class(kind) is type(q)
    except KeyError:
        known = False
    if not known:
        raise TypeError(f"{name}: {kind} is not registered; decorate it with @register_tensor")
    for key, value in q.metadata().items():
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise TypeError(f"{name}: {key} is {value!r}; metadata is a number, text or None")
    return {
        "class": kind,
        "shape": list(q.shape),
        "dtype": _dtype_name(q.dtype),
        "fields": {
            field: {"dtype": _dtype_name(t.dtype), "shape": list(t.shape)}
            for field, t in q.tensors().items()
        },
        "meta": q.metadata(),
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_storable(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is a {type(t).__name__}; a checkpoint holds tensors")
    if is_traceable_wrapper_subclass(t):
        hint = "; call .full_tensor() on it first" if hasattr(t, "full_tensor") else ""
        raise TypeError(f"{name} is a {type(t).__name__}, which a checkpoint cannot hold{hint}")
    if t.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values to save")
    if t.layout != torch.strided:
        raise TypeError(f"{name} is {t.layout}; a checkpoint holds dense tensors")
    if t.dtype not in DTYPES.values():
        raise TypeError(f"{name} is {t.dtype}; a checkpoint holds {', '.join(DTYPES)}")


# --- reading


def unflatten(
    plain_tensors: Mapping[str, Tensor], header_entries: Mapping[str, Entry]
) -> dict[str, Tensor]:
    """The inverse of `flatten`. Nothing is copied.

    CheckpointError unless every entry is possible for its class and has its tensors.
    """
    skeletons = {name: skeleton(name, entry) for name, entry in header_entries.items()}
    check_fields(skeletons, plain_tensors)
    return assemble(plain_tensors, skeletons)


def assemble(plain: Mapping[str, Tensor], skeletons: Mapping[str, QTensor]) -> dict[str, Tensor]:
    """`unflatten` when all has been checked."""
    state, rest = {}, dict(plain)
    for name, q in skeletons.items():
        fields = {field: rest.pop(field_name(name, field)) for field in q.tensors()}
        state[name] = q.rebuild(**fields)
    return state | rest


def check_fields(skeletons: Mapping[str, QTensor], available: Mapping[str, Described]) -> None:
    """Every field that a header describes is there as described, and no name means two things."""
    owner: dict[str, str] = {}
    for name, q in skeletons.items():
        if name in available:
            raise CheckpointError(f"{name}: there twice, as {type(q).__name__} and as plain tensor")
        for field, t in q.tensors().items():
            part = field_name(name, field)
            if part not in available:
                raise CheckpointError(f"{name}: its {field} is missing: there is no {part}")
            if part in owner or part in skeletons:
                raise CheckpointError(f"{part}: the header gives this name to two tensors")
            owner[part], found = name, available[part]
            if found.dtype != t.dtype or tuple(found.shape) != tuple(t.shape):
                raise CheckpointError(
                    f"{name}: the header says that {part} is {_dtype_name(t.dtype)} "
                    f"{list(t.shape)}, but it is {_dtype_name(found.dtype)} {list(found.shape)}"
                )


def skeleton(name: str, entry: Any) -> QTensor:
    """The tensor that an entry describes, on the meta device: all of it but the values.

    CheckpointError unless the entry is complete and its class accepts what it says.
    """
    checked_name(name)
    if not isinstance(entry, dict) or sorted(entry) != sorted(ENTRY_KEYS):
        wanted = ", ".join(ENTRY_KEYS)
        raise CheckpointError(f"{name}: its entry has the keys {wanted}; got {short(entry)}")
    cls = _checked_class(name, entry["class"])
    shape = checked_shape(entry["shape"], name)
    dtype = _checked_dtype(name, entry["dtype"])
    if not dtype.is_floating_point:
        raise CheckpointError(f"{name}: dtype is the float weight's, got {entry['dtype']!r}")
    fields = _checked_fields(name, cls, entry["fields"])
    _check_meta(name, cls, entry["meta"])
    try:
        arguments: dict[str, Any] = {"shape": torch.Size(shape), "dtype": dtype}
        q = cls(**(entry["meta"] | fields | arguments))
        q.check()
    except Exception as error:  # whatever a class raises for values that it cannot have
        raise CheckpointError(f"{name}: not a possible {cls.__name__}: {error}") from error
    return q


def _checked_class(name: str, kind: Any) -> type[QTensor]:
    try:
        return tensor_class(kind if isinstance(kind, str) else short(kind))
    except KeyError as error:
        hint = "import the package that defines it first (ao_quant for Int8Tensor and others)"
        raise CheckpointError(f"{name}: {error.args[0]:.300}; {hint}") from None


def _checked_dtype(name: str, dtype: Any) -> torch.dtype:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{name}: unknown dtype {short(dtype)}; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _checked_fields(name: str, cls: type[QTensor], fields: Any) -> dict[str, Tensor]:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{name}: fields is a JSON object, got {short(fields)}")
    missing = [field for field in cls._data if field not in fields | dict.fromkeys(cls._optional)]
    unknown = [field for field in fields if field not in cls._data]
    if missing or unknown:
        wrong = f"{missing[0]} is missing" if missing else f"got {short(unknown[0])}"
        known = ", ".join(cls._data)
        raise CheckpointError(f"{name}: the fields of {cls.__name__} are {known}; {wrong}")
    tensors = {}
    for field, value in fields.items():
        what = field_name(name, field)
        if not isinstance(value, dict) or sorted(value) != ["dtype", "shape"]:
            raise CheckpointError(f"{what}: described by dtype and shape, got {short(value)}")
        shape, dtype = checked_shape(value["shape"], what), _checked_dtype(what, value["dtype"])
        tensors[field] = torch.empty(shape, dtype=dtype, device="meta")
    return tensors


def _check_meta(name: str, cls: type[QTensor], meta: Any) -> None:
    kinds = _kinds(cls)
    if not isinstance(meta, dict) or sorted(meta) != sorted(cls._meta):
        known = ", ".join(cls._meta)
        raise CheckpointError(f"{name}: the meta of {cls.__name__} is {known}; got {short(meta)}")
    for key, value in meta.items():
        if type(value) not in kinds[key] and not (type(value) is int and float in kinds[key]):
            words = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds[key])
            raise CheckpointError(f"{name}: {key} is {words}, got {short(value)}")


@functools.cache
def _kinds(cls: type[QTensor]) -> dict[str, tuple[type, ...]]:
    """The types that each metadata field may have."""
    kinds: dict[str, tuple[type, ...]] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, QTensor):
            for field, kind in inspect.get_annotations(base, eval_str=True).items():
                union = isinstance(kind, types.UnionType)
                kinds[field] = typing.get_args(kind) if union else (kind,)
    return kinds
