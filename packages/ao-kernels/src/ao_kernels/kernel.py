"""One implementation of an op, and the direct entry for what a table chose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    On GPUs the first argument is the most tokens that it may take, 0 for any; tables rule above,
    and :class:`Chosen` keeps what they said. It takes up to ``few`` in any case; without ``few``
    only what the kernel was chosen for before.
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


def entries(
    kernels: Sequence[Kernel], chosen: Callable[..., Any] | None
) -> dict[str, tuple[Callable[..., Any], ...]]:
    """The direct entries of kernels by device, in the order in which they are tried.

    What tables chose, by the entry ``chosen``, comes before the kernels that look for a plan of the
    call, which takes 2 us where there is none.
    """
    found = {}
    for device in {device for kernel in kernels for device in kernel.devices}:
        here = [(k.few, k.direct) for k in kernels if device in k.devices and k.direct]
        few = [direct for n, direct in here if n]
        others = [direct for n, direct in here if not n]
        found[device] = (*few, *([chosen] if few and chosen else []), *others)
    return found


class Chosen:
    """The direct entry of calls that a table gave to a kernel with ``few``: of that kernel.

    A call is known by the shapes of x, codes and scale, which are what tables ask for, and the
    dtype of x.
    """

    _MOST = 4096  # shapes of calls: of many lengths of prompts, for example

    def __init__(self) -> None:
        self._entries: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def remember(self, direct: Callable[..., Any], x: Any, codes: Any, scale: Any) -> None:
        if len(self._entries) >= self._MOST:
            self._entries.clear()
        self._entries[x.shape, x.dtype, codes.shape, scale.shape] = direct

    def forget(self) -> None:
        self._entries.clear()

    def direct(self, _: int, x: Any, codes: Any, scale: Any, *others: Any) -> Any:
        if not self._entries:
            return NotImplemented
        try:
            key = (x.shape, x.dtype, codes.shape, scale.shape)
        except AttributeError:  # no tensors: the op's own check says so
            return NotImplemented
        return self._entries.get(key, refuses)(0, x, codes, scale, *others)
