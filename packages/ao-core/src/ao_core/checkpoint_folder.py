"""A folder that holds one checkpoint: a single file, or shards and the index that names them.

The files are named as Hugging Face names them. A folder is replaced in one step: shards have names
that no earlier save used, renaming the index into place is the moment at which the new checkpoint
replaces the old one, and only then are the old files removed. An index goes before a single file,
so that a change from one form to the other has such a moment too.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .checkpoint_file import MAX_HEADER, Staged, remove, sync_directory, write_file
from .checkpoint_header import naming, short, strict_json
from .errors import CheckpointError

__all__ = ["INDEX", "SINGLE", "File", "parse_size", "read_index", "split", "write_folder"]

File = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""What goes into one file: tensors and metadata."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OURS = re.compile(r"\.?model-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors(\.tmp)?")
NAME = re.compile(r"[^./\\\0][^/\\\0]*\.safetensors")
POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def write_folder(folder: Path, files: Sequence[File]) -> None:
    """Write files and index, commit, then remove what the commit made obsolete."""
    folder.mkdir(parents=True, exist_ok=True)
    with Staged(folder / INDEX) as index:  # held to the end: savers of one folder take turns
        obsolete = _files_of(folder)
        if len(files) == 1:
            write_file(folder / SINGLE, *files[0])
            index.path.unlink(missing_ok=True)  # the commit, where an index was
            sync_directory(folder)
            remove(obsolete - {folder / SINGLE})
            return
        save_id, written = secrets.token_hex(4), []
        try:
            weight_map: dict[str, str] = {}
            for i, (tensors, metadata) in enumerate(files, start=1):
                name = f"model-{save_id}-{i:05d}-of-{len(files):05d}.safetensors"
                written.append(folder / name)
                write_file(folder / name, tensors, metadata)
                weight_map |= dict.fromkeys(tensors, name)
            total = sum(t.nbytes for tensors, _ in files for t in tensors.values())
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            index.file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
            index.commit()
        except BaseException:
            remove(written)
            raise
        remove(obsolete)


def _files_of(folder: Path) -> set[Path]:
    """The files of the checkpoint that is there, and what killed saves left of theirs."""
    found = {path for path in folder.iterdir() if OURS.fullmatch(path.name)}
    found |= {folder / SINGLE, folder / f".{SINGLE}.tmp"}
    try:
        found |= {folder / name for name in read_index(folder / INDEX).values()}
    except (CheckpointError, FileNotFoundError):
        return found  # there is no index, or one that is not to be trusted with what is removed
    return found


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> name of a file in the same folder. FileNotFoundError, CheckpointError."""
    with open(path, "rb") as file:
        raw = file.read(MAX_HEADER + 1)
    with naming(path):
        if len(raw) > MAX_HEADER:
            raise CheckpointError(f"is longer than {MAX_HEADER} bytes")
        index = strict_json(raw.decode(errors="replace"), "the index")
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("has no weight_map that says which file holds which tensor")
        for name, file_name in weight_map.items():
            if not isinstance(file_name, str) or not NAME.fullmatch(file_name):
                raise CheckpointError(
                    f"{name}: {short(file_name)} is not the name of a safetensors file in "
                    "the index's own folder"
                )
    return weight_map


def split(state_dict: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names in their order, cut before the tensor that would take a file beyond `limit` bytes."""
    files: list[list[str]] = [[]]
    size = 0
    for name, t in state_dict.items():
        if files[-1] and size + t.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += t.nbytes
    return files


def parse_size(size: int | str) -> int:
    """Bytes, from a number of them or text such as "5GB" or "500MiB"."""
    pattern = r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B"
    match = re.fullmatch(pattern, size.upper()) if isinstance(size, str) else None
    number = size if match is None else int(float(match[1]) * _unit(match[2], match[3]))
    if type(number) is not int or number < 1:
        raise ValueError(f'a size is a number of bytes, or text as "5GB" or "500MiB"; got {size!r}')
    return number


def _unit(prefix: str, binary: str) -> int:
    return (1024 if binary else 1000) ** POWERS[prefix]
