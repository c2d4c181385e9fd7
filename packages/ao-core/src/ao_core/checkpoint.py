"""Checkpoints: models and state dicts with quantized tensors, as safetensors files.

    save(model, "model.safetensors")        one file
    save(model, "folder", config=config)    one file there, or shards and an index
    state = load("folder")                  or a file, or one shard alone
    load("folder", model=model)             into a model of any kind

A quantized parameter `layer.weight` is stored as plain tensors `layer.weight_codes`,
`layer.weight_scale`, ...; codes are never called `weight`, so a program that does not know the
format misses the weight instead of computing with codes. The header of each file says what belongs
together. docs/formats.md specifies all of it byte by byte; the parts are

    checkpoint_tensors  state dict <-> plain tensors and header entries
    checkpoint_header   header <-> the metadata of a safetensors file
    checkpoint_file     one file: checked when read, written in one step
    checkpoint_folder   shards and their index, replaced in one step
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint_file import FileHeader, StoredTensor, read_file_header, read_tensors, write_file
from .checkpoint_folder import INDEX, SINGLE, parse_size, read_index, split, write_folder
from .checkpoint_header import Entry, Header, check_name, decode_header, encode_header, naming
from .checkpoint_tensors import (
    assemble,
    check_fields,
    field_name,
    find_tied,
    flatten,
    skeleton,
    unflatten,
)
from .config import AOBaseConfig, config_from_dict
from .errors import CheckpointError
from .tensor import QTensor

__all__ = [
    "Entry",
    "Header",
    "decode_header",
    "encode_header",
    "find_tied",
    "flatten",
    "load",
    "load_config",
    "read_files",
    "read_header",
    "save",
    "unflatten",
]


# --- saving


def save(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    config: AOBaseConfig | None = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save a model or a state dict, quantized or not.

    path            a file (*.safetensors), or a folder: one file there, or shards and their index
    config          the config that the weights were quantized with, kept in the header
    max_shard_size  of a file in a folder: bytes, "5GB", "500MiB"; a larger tensor gets its own file
    metadata        other strings to keep in the header of every file

    Tied tensors are stored once. A process that is killed at any moment leaves the old checkpoint
    or the new one. TypeError or ValueError name what cannot be saved.
    """
    path, limit = Path(path), parse_size(max_shard_size)
    state = _state_dict(model_or_state_dict)
    tied = find_tied(state)
    aliases = {alias for others in tied.values() for alias in others}
    stored = {name: t for name, t in state.items() if name not in aliases}
    plain, entries = flatten(stored)
    for alias in aliases:
        if check_name(alias) in plain:
            raise ValueError(f"{alias}: a field of a quantized tensor is stored under that name")

    def file(names: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What a file that holds these tensors consists of."""
        header = encode_header(
            {name: entries[name] for name in names if name in entries},
            tied={name: tied[name] for name in names if name in tied},
            config=config,
            metadata=metadata,
        )
        parts = [part for name in names for part in _parts(name, stored[name])]
        return {part: plain[part] for part in parts}, header

    if path.suffix == ".safetensors":
        write_file(path, *file(list(stored)))
    else:
        write_folder(path, [file(names) for names in split(stored, limit)])


def _state_dict(source: Any) -> dict[str, Tensor]:
    if isinstance(source, nn.Module):
        return dict(source.state_dict(keep_vars=True))
    if isinstance(source, Mapping):
        return dict(source)
    raise TypeError(f"save takes a module or a state dict, got {type(source).__name__}")


def _parts(name: str, t: Tensor) -> list[str]:
    return [field_name(name, f) for f in t.tensors()] if isinstance(t, QTensor) else [name]


# --- loading


def load(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    device: torch.device | str | None = None,
    strict: bool = True,
) -> dict[str, Tensor]:
    """Load a checkpoint: a file, one shard of many, or a folder.

    Returns the state dict; tied names share one tensor.
    model   put the tensors into this model too, whose own may be float, quantized or on the meta
            device. Its parameters are replaced, so it takes over the checkpoint's dtypes and
            formats, and it is changed only if everything fits. What is returned is what was put in.
    device  where tensors go; without it, to where the model has them, or to the CPU
    strict  refuse names that only the model or only the checkpoint has

    On the CPU tensors are mapped: their pages are read when they are first used. To replace a file
    that is in use, rename another to its name, as `save` does. CheckpointError names the file and
    the tensor; nothing in a file is ever executed.
    """
    checkpoint = _open(Path(path))
    if model is None:
        return _moved(checkpoint.read(), lambda name: torch.device(device or "cpu"))
    with naming(path):
        targets = _match(model, checkpoint.described(), strict)
    everything = checkpoint.read()
    old = {name: t for name, (t, _) in targets.items()}
    state = _moved(
        {name: everything[source] for name, (_, source) in targets.items()},
        lambda name: torch.device(device or ("cpu" if old[name].is_meta else old[name].device)),
    )
    _assign(model, state, old)
    return state


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a checkpoint, that of all its files together. No tensor is read."""
    return _open(Path(path)).header


def read_files(paths: Sequence[str | os.PathLike[str]]) -> tuple[dict[str, QTensor], set[str]]:
    """What the files of one checkpoint hold together: the quantized tensors, on the meta device,
    and the names of all plain tensors. For whoever loads the files in a way of their own: all was
    checked, so each tensor is there as described. No tensor is read."""
    files = [Path(path) for path in paths]
    checkpoint = _open_files(files[0] if len(files) == 1 else files[0].parent, files)
    return checkpoint.skeletons, {name for f in checkpoint.files.values() for name in f.tensors}


def load_config(path: str | os.PathLike[str]) -> AOBaseConfig | None:
    """The config that a checkpoint was saved with; ConfigError if its type is not registered."""
    config = read_header(path).config
    return None if config is None else config_from_dict(config)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint whose headers were read and agree with each other and with the files."""

    header: Header
    skeletons: dict[str, QTensor]
    files: dict[Path, FileHeader]

    def described(self) -> dict[str, QTensor | StoredTensor]:
        """Every tensor that loading gives, by name; they have shape and dtype, but no values."""
        parts = {part for name, q in self.skeletons.items() for part in _parts(name, q)}
        found: dict[str, QTensor | StoredTensor] = dict(self.skeletons)
        for file in self.files.values():
            found |= {name: t for name, t in file.tensors.items() if name not in parts}
        return found | self._aliases(found)

    def read(self) -> dict[str, Tensor]:
        """The state dict, mapped from the files."""
        plain: dict[str, Tensor] = {}
        for path, file in self.files.items():
            with naming(path):
                plain |= read_tensors(path, file)
        state = assemble(plain, self.skeletons)
        return state | self._aliases(state)

    def _aliases(self, state: Mapping[str, Any]) -> dict[str, Any]:
        return {alias: state[name] for name, others in self.header.tied.items() for alias in others}


def _open(path: Path) -> _Checkpoint:
    if not path.is_dir():
        return _open_files(path, [path])
    for attempt in range(3):
        try:
            weight_map = read_index(path / INDEX)
        except FileNotFoundError:
            if (path / SINGLE).exists():
                return _open_files(path / SINGLE, [path / SINGLE])
            raise CheckpointError(f"{path}: holds neither {INDEX} nor {SINGLE}") from None
        try:
            names = sorted(set(weight_map.values()))
            return _open_files(path, [path / name for name in names], weight_map)
        except FileNotFoundError as error:  # by a save meanwhile? then there is another index now
            if attempt == 2 or _unchanged(path / INDEX, weight_map):
                missing = Path(error.filename).name
                raise CheckpointError(f"{path / INDEX}: {missing} is not there") from None
    raise AssertionError("unreachable")


def _unchanged(index: Path, weight_map: dict[str, str]) -> bool:
    try:
        return read_index(index) == weight_map
    except (CheckpointError, FileNotFoundError):
        return False


def _open_files(
    where: Path, paths: list[Path], weight_map: Mapping[str, str] | None = None
) -> _Checkpoint:
    """Read and compare the headers of the files of one checkpoint."""
    files: dict[Path, FileHeader] = {}
    headers: list[Header] = []
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        with naming(path):
            files[path] = file = read_file_header(path)
            headers.append(decode_header(file.metadata))
            for name in file.tensors:
                if name in tensors:
                    raise CheckpointError(f"{name}: another file of the folder has it too")
                if weight_map is not None and weight_map.get(name) != path.name:
                    raise CheckpointError(f"{name}: the index does not say that it is here")
            tensors |= file.tensors
    with naming(where):
        for name in weight_map or ():
            if name not in tensors:
                raise CheckpointError(f"{name}: not in the file that the index says it is in")
        header = _merged(headers)
        skeletons = {name: skeleton(name, entry) for name, entry in header.tensors.items()}
        check_fields(skeletons, tensors)
        checkpoint = _Checkpoint(header, skeletons, files)
        _check_tied(header, tensors, skeletons)
    return checkpoint


def _merged(headers: list[Header]) -> Header:
    first = headers[0]
    tensors: dict[str, Entry] = {}
    tied: dict[str, list[str]] = {}
    for header in headers:
        _merge(tensors, header.tensors)
        _merge(tied, header.tied)
        if header.config != first.config:
            raise CheckpointError("its files were saved with different configs")
    return Header(first.version, tensors, tied, first.config, first.metadata)


def _merge(ours: dict[str, Any], theirs: Mapping[str, Any]) -> None:
    for name, value in theirs.items():
        if ours.setdefault(name, value) != value:
            raise CheckpointError(f"{name}: two files describe it differently")


def _check_tied(
    header: Header, tensors: Mapping[str, StoredTensor], skeletons: Mapping[str, QTensor]
) -> None:
    parts = {part for name, q in skeletons.items() for part in _parts(name, q)}
    for name, others in header.tied.items():
        if name in parts or (name not in tensors and name not in skeletons):
            raise CheckpointError(f"{others[0]}: tied to {name}, which is not there")
        for other in others:
            if other in tensors or other in skeletons:
                raise CheckpointError(f"{other}: there twice, as a tensor and tied to {name}")


# --- into a model


def _match(
    model: nn.Module, found: Mapping[str, QTensor | StoredTensor], strict: bool
) -> dict[str, tuple[Tensor, str]]:
    """For each name of the model that is loaded: the model's tensor, and the name of the new one.

    A name that the checkpoint lacks takes what another name of the same parameter gets.
    CheckpointError unless everything fits.
    """
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    shared = {id(t): name for name, t in own.items() if name in found}
    targets = {
        name: (t, name if name in found else shared[id(t)])
        for name, t in own.items()
        if id(t) in shared
    }
    missing = [name for name in own if name not in targets]
    unexpected = [name for name in found if name not in own]
    if strict and (missing or unexpected):
        wrong = f"the checkpoint lacks {_listed(missing)}; " if missing else ""
        wrong += f"the model lacks {_listed(unexpected)}; " if unexpected else ""
        raise CheckpointError(f"{wrong}strict=False loads what both have")
    for name, (t, source) in targets.items():
        module, leaf = _owner(model, name)
        if module is None or (leaf not in module._parameters and leaf not in module._buffers):
            raise CheckpointError(f"{name}: neither parameter nor buffer; load without a model")
        new = found[source]
        if tuple(new.shape) != tuple(t.shape):
            raise CheckpointError(
                f"{name}: has shape {list(new.shape)}, the model's has {list(t.shape)}"
            )
        if new.dtype.is_floating_point != t.dtype.is_floating_point:
            raise CheckpointError(f"{name}: has dtype {new.dtype}, the model's has {t.dtype}")
    return targets


def _owner(model: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path), leaf
    except AttributeError:
        return None, leaf


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _moved(state: dict[str, Tensor], device_of: Callable[[str], torch.device]) -> dict[str, Tensor]:
    """The tensors on their devices; names that shared a tensor still do."""
    moved: dict[tuple[int, torch.device], Tensor] = {}
    result = {}
    for name, t in state.items():
        device = device_of(name)
        if (id(t), device) not in moved:
            moved[id(t), device] = t if t.device == device else t.to(device)
        result[name] = moved[id(t), device]
    return result


def _assign(model: nn.Module, state: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    """Put tensors into the model's modules: only assignments, which do not fail half-way."""
    parameters: dict[int, nn.Parameter] = {}
    for name, t in state.items():
        if id(t) not in parameters:
            trains = not isinstance(t, QTensor) and old[name].requires_grad
            parameters[id(t)] = nn.Parameter(t, requires_grad=trains)
    for name, t in state.items():
        module, leaf = _owner(model, name)
        assert module is not None
        if leaf in module._parameters:
            module._parameters[leaf] = parameters[id(t)]
        else:
            module._buffers[leaf] = t
