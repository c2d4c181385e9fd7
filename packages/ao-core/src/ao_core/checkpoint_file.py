"""One safetensors file: read with suspicion, written in one step.

The format is safetensors' own, and its library maps the tensors. The header is parsed here first,
because a checkpoint may come from anywhere and a refusal should name what is wrong. Writing is done
here too: safetensors' writer needs numpy and every tensor in memory at once; this one takes them
one by one from any device.
"""

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint_header import DTYPES, checked_name, checked_shape, short, strict_json
from .errors import CheckpointError

try:
    import fcntl
except ImportError:
    # Windows: two processes that save to one path at the same time are not kept apart.
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FileHeader",
    "Staged",
    "StoredTensor",
    "read_file_header",
    "read_tensors",
    "write_file",
]

MAX_HEADER = 100_000_000  # bytes; safetensors refuses longer ones too
ALIGNMENT = 64  # of the data: a cache line. Tensors of whole cache lines come first and keep it
CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
DTYPE_OF = {code: DTYPES[name] for name, code in CODES.items()}
CODE_OF = {dtype: code for code, dtype in DTYPE_OF.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of a tensor are, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class FileHeader:
    """What a safetensors file says about itself; `identity` changes when the file is replaced."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    identity: tuple[int, ...]


# --- reading


def read_file_header(path: Path) -> FileHeader:
    """Read and check the header: names, dtypes, shapes and offsets against the length of the file.

    FileNotFoundError, CheckpointError.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        size, length = status.st_size, int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size or length > MAX_HEADER:
            raise CheckpointError(
                f"is truncated, or not a safetensors file: it has {size} bytes, and they begin "
                f"with a header of {length} (at most {MAX_HEADER})"
            )
        raw = file.read(length)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the header is not UTF-8: {error}") from error
    header = strict_json(text, "the header")
    if not isinstance(header, dict):
        raise CheckpointError(f"the header is a JSON object, got {short(header)}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"__metadata__ maps strings to strings, got {short(metadata)}")
    tensors = {checked_name(name): _stored_tensor(name, entry) for name, entry in header.items()}
    _check_cover(tensors, size - 8 - length)
    return FileHeader(tensors, metadata, _identity(status))


def read_tensors(path: Path, header: FileHeader) -> dict[str, Tensor]:
    """The tensors of a file whose header was read. They are mapped: pages are read when they are
    used, and what is written to them stays in memory.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in header.tensors}
        same = _identity(os.stat(path)) == header.identity
    except SafetensorError as error:
        raise CheckpointError(f"safetensors cannot read it: {error}") from error
    except FileNotFoundError:
        same = False
    if not same:
        raise CheckpointError("was replaced while it was being read; load it again")
    return tensors


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _stored_tensor(name: str, entry: object) -> StoredTensor:
    if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
        raise CheckpointError(f"{name}: a tensor is described by dtype, shape and data_offsets")
    code, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPE_OF:
        raise CheckpointError(f"{name}: unknown dtype {short(code)}; known: {', '.join(DTYPE_OF)}")
    shape = checked_shape(entry["shape"], name)
    good = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)
    if not good or not 0 <= offsets[0] <= offsets[1]:
        raise CheckpointError(f"{name}: data_offsets are a begin and an end, got {short(offsets)}")
    dtype, (start, stop) = DTYPE_OF[code], offsets
    needed = math.prod(shape) * dtype.itemsize
    if stop - start != needed:
        raise CheckpointError(
            f"{name}: {code} {list(shape)} takes {needed} bytes, not {stop - start}"
        )
    return StoredTensor(dtype, shape, start, stop)


def _check_cover(tensors: Mapping[str, StoredTensor], available: int) -> None:
    """Tensors lie one behind the other, without holes, to the end of the file."""
    position = 0
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if stored.start != position:
            raise CheckpointError(
                f"{name}: begins at {stored.start}, the one before ends at {position}"
            )
        position = stored.stop
    if position != available:
        what = "is truncated" if position > available else "has bytes that belong to no tensor"
        raise CheckpointError(f"{what}: tensors take {position} bytes, the file has {available}")


# --- writing


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, in one step. Tensors are taken to the CPU one at a time."""
    names = sorted(tensors, key=lambda name: _rank(tensors[name], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in names:
        t = tensors[name]
        offsets = [position, position + t.nbytes]
        header[name] = {"dtype": CODE_OF[t.dtype], "shape": list(t.shape), "data_offsets": offsets}
        position += t.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    if len(raw) > MAX_HEADER:
        raise ValueError(
            f"{path}: its header would take {len(raw)} bytes, {MAX_HEADER} are allowed; save to a "
            "folder with a smaller max_shard_size"
        )
    with Staged(path) as staged:
        staged.file.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            _write(staged.file, tensors[name])
        staged.commit()


def _rank(t: Tensor, name: str) -> tuple[bool, int, str]:
    """The order in a file: tensors of whole cache lines, then larger elements first."""
    return (t.nbytes % ALIGNMENT != 0, -t.dtype.itemsize, name)


def _write(file: IO[bytes], t: Tensor) -> None:
    t = t.detach().cpu().contiguous().resolve_neg()
    if t.nbytes:
        file.write((ctypes.c_char * t.nbytes).from_address(t.data_ptr()))


class Staged:
    """A file that is written under a temporary name beside `path` and takes its place in one step.

        with Staged(path) as staged:
            staged.file.write(...)
            staged.commit()

    Without `commit` the temporary file is removed and `path` is as it was. The temporary name is
    always the same and locked while in use, so savers of one path take turns, and what a killed
    process left is written over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.file: IO[bytes] = os.fdopen(self._locked(), "wb")
        self.file.truncate(0)

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        while True:
            descriptor = os.open(self.temporary, flags, 0o666)
            _lock(descriptor, held=True)
            try:  # whoever held the lock may have renamed or removed the file meanwhile
                if os.path.samestat(os.fstat(descriptor), os.stat(self.temporary)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def commit(self) -> None:
        """Make the content durable, then give it its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.temporary, self.path)
        sync_directory(self.path.parent)
        self._close()

    def __enter__(self) -> "Staged":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.file.closed:
            self.temporary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # on a full disk the buffer cannot be flushed
                self._close()

    def _close(self) -> None:
        _lock(self.file.fileno(), held=False)  # closing would not, if a forked child has it open
        self.file.close()


def _lock(descriptor: int, *, held: bool) -> None:
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # some file systems have no locks: savers take no turns
        fcntl.flock(descriptor, fcntl.LOCK_EX if held else fcntl.LOCK_UN)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)
