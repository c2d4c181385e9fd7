"""Copies between a device and the CPU's memory, beside what the device computes.

On CUDA a copy of 2 bytes an element takes about 0.04 ms a million elements (50 GB/s). Copies to the
CPU have a stream of their own, copies to the device another, so that both directions run at once,
and the memory on the CPU's side is pinned. Whoever reads what arrives waits for its event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Arrival", "CudaTransfers", "Transfers", "transfers_of"]

# Bytes of gradients that wait for their copy before the device waits for the oldest of them. Their
# memory is reused only then: the host enqueues a backward pass long before the device runs it, and
# would else allocate every gradient of the model.
IN_FLIGHT = 256 << 20


class Arrival(NamedTuple):
    """What `fetch` started: `wait()` returns when it has arrived. `norm` is the 2-norm of the
    result, 0-d float32 or float64 on the source's device, which may be read then; and `done` the
    event behind it, for streams (None on the CPU)."""

    wait: Callable[[], None]
    norm: Tensor | None
    done: Any


def _nothing() -> None:
    """What has nothing to wait for."""


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


class Transfers:
    """Between tensors of the CPU: everything has happened when a method returns."""

    def host_like(self, x: Tensor) -> Tensor:
        """Memory on the CPU for copies of `x`, of its shape, dtype and strides; not filled."""
        return torch.empty_like(x, device="cpu")

    def fetch(
        self,
        source: Tensor,
        target: Tensor,
        *,
        add: bool = False,
        norm: bool = False,
        owner: Any = None,
        foreign: bool = False,
    ) -> Arrival:
        """Start target = source, or target += source; `target` is from `host_like`.

        The caller may let go of `source` at once. A sum is rounded as autograd rounds sums of
        gradients: once, to their dtype. The memory of `source` belongs to the stream `owner`; None
        stands for the current one, `foreign` says that it may be any.
        """
        if add:
            target += source
        else:
            target.copy_(source)
        return Arrival(_nothing, _norm(target) if norm else None, None)

    def bring(self, source: Tensor, *, after: Any) -> tuple[Tensor, Any]:
        """Start a copy of `source` to the device, behind the event `after` if there is one. Gives
        the copy, which the current stream owns, and its event, for `depend`."""
        return source, None

    def mark(self) -> Any:
        """An event behind what the device was asked for so far."""
        return None

    def stream(self) -> Any:
        """What the device works at now."""
        return None

    def depend(self, event: Any) -> None:
        """What the device is asked for from now on waits for an event."""

    def send(self, source: Tensor, target: Tensor, *, after: Any) -> None:
        """Start target = source on the device, behind the event `after`."""
        target.copy_(source)

    def join(self) -> None:
        """What the device is asked for from now on waits for all copies; sources are let go."""

    def finish(self) -> None:
        """Wait for all copies to the CPU."""


class CudaTransfers(Transfers):
    """Between a CUDA device and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.down, self.up = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._in_flight: deque[tuple[Tensor, torch.cuda.Stream, torch.cuda.Event]] = deque()
        self._bytes = 0

    def host_like(self, x: Tensor) -> Tensor:
        return torch.empty_like(x, device="cpu", pin_memory=True)

    def fetch(
        self,
        source: Tensor,
        target: Tensor,
        *,
        add: bool = False,
        norm: bool = False,
        owner: Any = None,
        foreign: bool = False,
    ) -> Arrival:
        current = self.stream()
        self.down.wait_stream(current)
        with torch.cuda.stream(self.down):
            total = target.to(self.device, non_blocking=True).add_(source) if add else source
            target.copy_(total, non_blocking=True)
            found = _norm(total) if norm else None
            done = self.down.record_event()
            if foreign:
                source.record_stream(self.down)
        # `source` is kept until its owner has been told to wait for the copy: then the allocator
        # may give its memory to whatever that stream does next.
        self._in_flight.append((source, owner or current, done))
        self._bytes += source.nbytes
        while self._bytes > IN_FLIGHT and len(self._in_flight) > 1:
            self._let_go()
        return Arrival(done.synchronize, found, done)

    def _let_go(self) -> None:
        source, owner, done = self._in_flight.popleft()
        owner.wait_event(done)
        self._bytes -= source.nbytes

    def bring(self, source: Tensor, *, after: Any) -> tuple[Tensor, Any]:
        target = torch.empty_like(source, device=self.device)
        self.up.wait_stream(self.stream())  # to whose work the memory belonged so far
        if after is not None:
            self.up.wait_event(after)
        with torch.cuda.stream(self.up):
            target.copy_(source, non_blocking=True)
            return target, self.up.record_event()

    def mark(self) -> torch.cuda.Event:
        return self.stream().record_event()

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def depend(self, event: Any) -> None:
        self.stream().wait_event(event)

    def send(self, source: Tensor, target: Tensor, *, after: Any) -> None:
        with torch.cuda.stream(self.up):
            self.up.wait_event(after)
            target.copy_(source, non_blocking=True)

    def join(self) -> None:
        while self._in_flight:
            self._let_go()
        self.stream().wait_stream(self.down)
        self.stream().wait_stream(self.up)

    def finish(self) -> None:
        self.down.synchronize()


def transfers_of(device: torch.device) -> Transfers:
    """How tensors of `device` are copied; NotImplementedError for devices but CPU and CUDA."""
    if device.type == "cpu":
        return Transfers()
    if device.type == "cuda":
        return CudaTransfers(device)
    raise NotImplementedError(
        f"offload optimizers work with CUDA devices (and, for tests, the CPU), the parameters are "
        f"on {device}: move the model first, or use the base optimizer itself"
    )
