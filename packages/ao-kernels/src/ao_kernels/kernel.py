"""One implementation of an op, and how direct entries of several are put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One implementation of an op.

    ``supports(*args)`` gives None, or the reason why the kernel does not take these arguments.
    ``run(*args)`` may assume that it does, that ``check`` passed, and that all tensors are plain
    and on one of ``devices``. ``direct(n_threads, *args)``, where there is one, is tried first in
    eager mode: it does the work of ``supports`` and ``run`` in one call and gives NotImplemented
    when it does not take the arguments as they are.

    On GPUs the first argument is the most tokens that it may take, 0 for any; tables rule above. It
    takes up to ``few`` in any case; without ``few`` only what the kernel was chosen for before.
    """

    name: str
    backend: str
    devices: tuple[str, ...]
    supports: Callable[..., str | None]
    run: Callable[..., Any]
    direct: Callable[..., Any] | None = None
    few: int = 0


def refuses(*_: object) -> Any:
    """Stands for a kernel that takes nothing."""
    return NotImplemented


def one_of(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    """The direct entry of two kernels, tried in this order."""

    def direct(*args: Any) -> Any:
        y = first(*args)
        return second(*args) if y is NotImplemented else y

    return direct
