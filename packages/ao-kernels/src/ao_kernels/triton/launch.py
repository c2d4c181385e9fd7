"""Launches of Triton kernels at the price of a call into CUDA.

Which compiled form of a kernel fits a call depends on the dtypes of its tensors, on which addresses
and numbers are multiples of 16, and on which numbers are 1. ``kernel[grid](...)`` works this out on
every call, for 70 to 130 us on the host of an H200. A :class:`Launch` has its numbers fixed, so
that only addresses can differ between two calls: it keeps the compiled kernel of each pattern of
aligned addresses, which Triton chose in the first call, and starts it through the launcher that
belongs to it. An op keeps the launches of a call in :class:`Plans`, by the :func:`facts` of its
tensors.

The launcher is not a public interface. Where Triton does not have it as it was in 3.6 to 3.9, in
the interpreter, and while a profiler has set launch hooks, launches are ordinary ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from ao_kernels import registry

_MOST_PLANS = 4096  # of one op; a plan takes about 2 kB
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu)
_runtime = triton.knobs.runtime
# Without CUDA in torch these are missing, and no launch reaches them.
_current_device: Any = getattr(torch._C, "_cuda_getDevice", None)
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)

Plan = TypeVar("Plan")


def facts(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """All that a plan may depend on, except values and the address."""
    if tensor is None:
        return None
    return (
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.get_device(),
        tensor.is_neg(),
    )


def same_places(given: Sequence[Tensor | None], ready: Sequence[Tensor | None]) -> bool:
    """Whether tensors were made ready without a copy, so that a plan serves those given, too."""
    pairs = zip(given, ready, strict=True)
    return all(a is None or b is None or a.data_ptr() == b.data_ptr() for a, b in pairs)


class Room(NamedTuple):
    """A tensor to be allocated: in plain tuples, which torch reads 0.8 us faster than a torch.Size.

    Allocation takes 0.9 us, by ``new_empty`` 1.2 (torch 2.13, EPYC, CPU tensors).
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype) -> Room:
        """Room for a contiguous tensor."""
        strides = [1]
        for size in reversed(shape[1:]):
            strides.append(strides[-1] * max(size, 1))
        return cls(tuple(shape), tuple(reversed(strides))[: len(shape)], dtype)

    def like(self, x: Tensor) -> Tensor:
        """The tensor, on the device of x."""
        return x.new_empty_strided(self.shape, self.strides, dtype=self.dtype)


class Plans(Generic[Plan]):
    """What an op worked out about calls, by facts; ``get(key)`` is None for new ones."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}
        self.get: Callable[[Any], Plan | None] = self._plans.get
        registry.FORGET.append(self._plans.clear)

    def keep(self, key: Any, plan: Plan) -> Plan:
        if len(self._plans) >= _MOST_PLANS:  # of many lengths of prompts, for example
            self._plans.clear()
        self._plans[key] = plan
        return plan


class Launch:
    """A kernel with all that it is launched with but its tensors; call it with these.

    The parameters of ``kernel`` are tensors first, then ``numbers``, then the ``constants`` (the
    constexprs), all in order. A tensor may be None in all calls or in none, and has one dtype.
    Kernels see float8 tensors as bytes: Triton refuses them for GPUs that cannot convert them.
    """

    __slots__ = ("_compiled", "_constants", "_device", "_grid", "_kernel", "_numbers", "_options")

    def __init__(
        self,
        kernel: Any,
        grid: Sequence[int],
        numbers: Sequence[int],
        constants: dict[str, Any],
        options: dict[str, Any],
        device: torch.device,
    ) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        self._numbers = tuple(numbers)
        self._constants = constants
        self._options = options
        self._device = device.index if device.type == "cuda" else -1
        # By the pattern of aligned addresses; () where the kernel has to be launched ordinarily.
        self._compiled: dict[Any, tuple[Any, ...]] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        addresses, together = [], 0
        for tensor in tensors:
            address = 0 if tensor is None else tensor.data_ptr()
            together |= address
            addresses.append(address)
        pattern = tuple(a % 16 == 0 for a in addresses) if together & 15 else None
        found = self._compiled.get(pattern)
        if not found or _runtime.launch_enter_hook.calls or _current_device() != self._device:
            self._start(pattern, found, tensors)
            return
        run, grid, function, metadata, others = found
        stream = _current_stream(self._device)
        run(*grid, stream, function, metadata, None, None, None, *addresses, *others)

    def _start(
        self, pattern: Any, found: tuple[Any, ...] | None, tensors: tuple[Tensor | None, ...]
    ) -> None:
        """The ordinary launch; keeps what it compiled."""
        if self._device >= 0 and _current_device() != self._device:
            with torch.cuda.device(self._device):
                self(*tensors)
            return
        launch = self._kernel[self._grid]
        given = [
            t.view(torch.uint8) if t is not None and t.dtype in _FLOAT8 else t for t in tensors
        ]
        compiled = launch(*given, *self._numbers, **self._constants, **self._options)
        if found is None:
            others = (*self._numbers, *self._constants.values())
            self._compiled[pattern] = _started(compiled, self._grid, others)


def _started(compiled: Any, grid: tuple[int, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    """What starts a compiled kernel again, or () if it is not known how."""
    if not is_known(compiled) or not hasattr(_runtime.launch_enter_hook, "calls"):
        return ()
    return compiled.run, grid, compiled.function, compiled.packed_metadata, others


def is_known(compiled: Any) -> bool:
    """True for a compiled kernel with the launcher this module knows (triton 3.6 to 3.9).

    None, which the interpreter gives, has none.
    """
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    names = ("run", "function", "packed_metadata")
    return (3, 6) <= version <= (3, 9) and all(hasattr(compiled, name) for name in names)
