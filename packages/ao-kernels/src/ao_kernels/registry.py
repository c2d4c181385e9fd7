"""The registry of ops: schema, fake, reference, backward and any number of kernels of each.

An op module defines the op by decorating its reference, a plain function over plain tensors::

    @op("(Tensor x, Tensor codes, int group_size) -> Tensor", tensors=("x",))
    def my_linear(x, codes, group_size): ...      # plain torch, any device, any shape

    @my_linear.check                              # words every refusal; raises or returns None
    @my_linear.fake                               # shape and dtype of the result
    @my_linear.backward                           # gradients of the differentiable arguments

and a kernel module adds ``@my_linear.kernel("cpu", device="cpu", supports=...)``. The first
argument is a tensor, or a list of tensors on one device, as of ops that change many in one call.

Where a call goes:

* eager, plain tensors, nothing to differentiate: straight to the kernel, past the dispatcher (a
  custom op costs 6 to 11 us a call, this path about 1.5 us with the allocation of the result; see
  docs/decisions/0003-threads.md). The direct entry for CPU tensors is asked first; it refuses CUDA
  tensors within 0.1 us, and the one for CUDA tensors is asked next. What neither takes goes to the
  fastest kernel by the GPU's table (:mod:`ao_kernels.tuned`), or the first that supports it;
* a gradient is wanted: ``torch.autograd.Function`` around the same;
* torch.compile, export, fake tensors, tensor subclasses, dispatch modes: the custom op
  ``ao::<name>``, or, when no kernel takes the call, the reference itself, so that Inductor can
  fuse it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack as _n_dispatch_modes
from torch.compiler import is_dynamo_compiling

from ao_kernels import choice
from ao_kernels.choice import Choice
from ao_kernels.kernel import Chosen, Kernel, entries

_BACKENDS = ("reference", "cpu", "cuda", "triton")
_ACCELERATORS = ("cuda", "xpu")
# The backends that an op looks for, and where they run; the first one to take a call gets it.
_RUNS_ON = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
_PLAIN = (Tensor, torch.nn.Parameter)
_ASK = 1  # token that a direct entry may take, beyond its few, until the tables were asked
_LIBRARY = torch.library.Library("ao", "DEF")
_n_threads = torch.get_num_threads
_grad_mode = torch.is_grad_enabled

OPS: dict[str, Op] = {}
FORGET: list[Callable[[], None]] = []  # drops what direct entries know of calls chosen for them
_forced: str | None = None


class Op:
    """A callable op; see the module docstring. Built by :func:`op`, listed in :data:`OPS`."""

    def __init__(
        self,
        reference: Callable[..., Any],
        *,
        schema: str,
        tensors: tuple[str, ...],
        inline: bool = True,
    ) -> None:
        self.name = reference.__name__
        self.__name__ = self.name
        self.__doc__ = reference.__doc__
        self.__module__ = reference.__module__
        self.__wrapped__ = reference  # inspect.signature and doctest see the reference
        self.reference = reference
        self.schema = torch._C.parse_schema(f"ao::{self.name}{schema}")
        self.kernels: list[Kernel] = []
        self._inline = inline
        self._parameters = [argument.name for argument in self.schema.arguments]
        self._defaults = [
            (argument.default_value,) if argument.has_default_value() else None
            for argument in self.schema.arguments
        ]
        # Numbers of arguments after x that a direct entry may be given.
        self._least = self._defaults.count(None) - 1
        self._most = len(self._parameters) - 1
        self._differentiable = [self._parameters.index(name) for name in tensors]
        self._check: Callable[..., None] = lambda *args: None
        self._backward: Callable[..., tuple[Any, ...]] | None = None
        # Direct entries in the order in which they are tried, by device.
        self._entries: dict[str, tuple[Callable[..., Any], ...]] = {}
        self._on_cpu: tuple[Callable[..., Any], ...] = ()
        self._on_cuda: tuple[Callable[..., Any], ...] = ()
        self._most_tokens = _ASK  # what direct entries of GPUs are told
        self._chosen = Chosen()
        self._loaded: set[str] = set()
        _LIBRARY.define(f"{self.name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        self.overload = getattr(torch.ops.ao, self.name).default
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(self.name, self._run_custom, key)
        if not tensors:  # results have no gradient, whatever the arguments require
            _LIBRARY.impl(self.name, torch.library.fallthrough_kernel, "Autograd")
        OPS[self.name] = self

    def __repr__(self) -> str:
        return f"<op ao::{self.schema}>".replace("ao::ao::", "ao::")

    # ------------------------------------------------------------ definition

    def check(self, function: Callable[..., None]) -> Callable[..., None]:
        """Decorator: raises TypeError or ValueError, in the caller's words, for arguments no
        implementation can take."""
        self._check = function
        return function

    def fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the result without data; runs after ``check``."""

        def checked(*args: Any) -> Any:
            args = self._bind(args, {})
            self._check(*args)
            return function(*args)

        torch.library.register_fake(f"ao::{self.name}", checked, lib=_LIBRARY)
        return function

    def backward(self, function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Decorator: ``function(grad, args, needs)`` gives one gradient or None per differentiable
        argument."""
        self._backward = function
        positions = self._differentiable

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _save(ctx, inputs)

        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            # Shorter than the schema when trailing arguments have their defaults.
            wanted = ctx.needs_input_grad
            needs = [position < len(wanted) and wanted[position] for position in positions]
            grads: list[Any] = [None] * len(wanted)
            for position, each in zip(positions, function(grad, _saved(ctx), needs), strict=True):
                if position < len(wanted):
                    grads[position] = each
            return tuple(grads)

        torch.library.register_autograd(
            f"ao::{self.name}", backward, setup_context=setup_context, lib=_LIBRARY
        )

        class Direct(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Any) -> Any:
                _save(ctx, inputs)
                return self._run(inputs)

        Direct.backward = staticmethod(backward)  # type: ignore[method-assign]
        self._autograd = Direct
        return function

    def kernel(
        self,
        name: str,
        *,
        device: str | tuple[str, ...],
        supports: Callable[..., str | None],
        direct: Callable[..., Any] | None = None,
        few: int = 0,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that adds a kernel; ``name`` is its backend ("cpu", "cuda", "triton") or
        "<backend>:<variant>".

        Kernels of one device are tried in this order where no table says which is the fastest.
        """

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            devices = (device,) if isinstance(device, str) else device
            backend = name.partition(":")[0]
            self.kernels.append(Kernel(name, backend, devices, supports, run, direct, few))
            self._choose_direct()
            return run

        return add

    # ------------------------------------------------------------ calls

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return self._trace(self._bind((x, *args), kwargs))
        if (
            not kwargs
            and self._least <= len(args) <= self._most
            and not _n_dispatch_modes()
            and not (_grad_mode() and self._wants_grad(x, args))
        ):
            for direct in self._on_cpu:
                y = direct(_n_threads(), x, *args)
                if y is not NotImplemented:
                    return y
            for direct in self._on_cuda:
                y = direct(self._most_tokens, x, *args)
                if y is not NotImplemented:
                    return y
        return self._general(self._bind((x, *args), kwargs))

    def why_not(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """Why each kernel does not take this call, by kernel name.

        Absent are the one that takes it and those that could and were not measured to be slower. An
        entry "bf16" says that an unquantized layer would be faster.
        """
        bound = self._bind(args, kwargs)
        self._check(*bound)
        device = _device_of(bound)
        self._load(device)
        reasons = {}
        for backend in _RUNS_ON:
            if missing := self._missing(backend, device):
                reasons[backend] = missing
        for kernel in self.kernels:
            if reason := self._refusal(kernel, device, bound):
                reasons[kernel.name] = reason
        if _forced is None:
            able = [kernel for kernel in self.kernels if kernel.name not in reasons]
            chosen = self._select(bound)
            reasons.update(choice.slower(self.name, self._parameters, chosen, able, bound))
        return reasons

    def choice(self, *args: Any, **kwargs: Any) -> Choice:
        """The kernel that takes this call, and where an unquantized layer would be faster."""
        bound = self._bind(args, kwargs)
        self._check(*bound)
        self._load(_device_of(bound))
        return choice.choice(self.name, self._parameters, self._select(bound), bound)

    def _wants_grad(self, x: Any, args: tuple[Any, ...]) -> bool:
        if not self._differentiable:
            return False
        if x.requires_grad:
            return True
        n_given = len(args)
        for position in self._differentiable:
            if 0 < position <= n_given:
                value = args[position - 1]
                if value is not None and value.requires_grad:
                    return True
        return False

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        parameters = self._parameters
        if len(args) == len(parameters) and not kwargs:
            return args
        if len(args) > len(parameters):
            raise TypeError(
                f"{self.name} takes {len(parameters)} arguments; {len(args)} were given"
            )
        bound = list(args)
        used = 0
        for index in range(len(args), len(parameters)):
            name, default = parameters[index], self._defaults[index]
            if name in kwargs:
                bound.append(kwargs[name])
                used += 1
            elif default is not None:
                bound.append(default[0])
            else:
                raise TypeError(f"{self.name} needs the argument '{name}'")
        if used != len(kwargs):
            wrong = [name for name in kwargs if name not in parameters[len(args) :]]
            raise TypeError(f"{self.name} got unexpected or repeated arguments: {', '.join(wrong)}")
        return tuple(bound)

    def _general(self, args: tuple[Any, ...]) -> Any:
        special = (
            _n_dispatch_modes() > 0 or torch._C._functorch.peek_interpreter_stack() is not None
        )
        if special or not all(type(a) in _PLAIN for a in _tensors_in(args)):
            return self.overload(*args)
        if _grad_mode() and self._wants_grad(args[0], args[1:]):
            self._check(*args)
            return self._autograd.apply(*args)
        return self._run(args)

    def _trace(self, args: tuple[Any, ...]) -> Any:
        # Kernel modules cannot be imported from a traced frame: until they are there, the custom op
        # chooses when it runs.
        backend = "triton" if _device_of(args) in _ACCELERATORS else "cpu"
        if backend not in self._loaded:
            return self.overload(*args)
        device = _device_of(args)
        for kernel in reversed(self.kernels):  # the last one asks for the least: fewer guards
            if self._refusal(kernel, device, args) is None:
                return self.overload(*args)
        if self._inline and self._select(args) is None:  # raises where one was forced
            self._check(*args)
            return self.reference(*args)
        return self.overload(*args)

    def _run_custom(self, *args: Any) -> Any:
        return self._run(self._bind(args, {}))

    def _run(self, args: tuple[Any, ...]) -> Any:
        """Plain tensors, no autograd: the best kernel, or the reference."""
        device = _device_of(args)
        self._load(device)
        for direct in self._entries.get(device, ()):
            y = direct(self._most_tokens if device == "cuda" else _n_threads(), *args)
            if y is not NotImplemented:
                return y
        self._check(*args)
        kernel = self._select(args)
        if kernel is None:
            return self.reference(*args)
        if kernel.few and kernel.direct is not None and _forced is None:
            self._chosen.remember(kernel.direct, *args[:3])
        return kernel.run(*args)

    # ------------------------------------------------------------ choice

    def _select(self, args: tuple[Any, ...]) -> Kernel | None:
        device = _device_of(args)
        able = []
        for kernel in self.kernels:
            if self._refusal(kernel, device, args) is None:
                if device == "cpu" or _forced is not None:
                    return kernel
                able.append(kernel)
        if able:
            if self._most_tokens == _ASK:
                self._most_tokens = choice.most_tokens(self.name, self.kernels)
            return choice.fastest(self.name, self._parameters, able, self._most_tokens, args)
        if _forced is not None and _forced != "reference":
            raise RuntimeError(
                f"AO_KERNELS={_forced} is set, and no {_forced} kernel of {self.name} takes this "
                f"call: {self.why_not(*args).get(_forced, 'none is registered')}"
            )
        return None

    def _refusal(self, kernel: Kernel, device: str, args: tuple[Any, ...]) -> str | None:
        if _forced is not None and kernel.backend != _forced:
            return f"AO_KERNELS={_forced} is set"
        if device not in kernel.devices:
            return f"runs on {' and '.join(kernel.devices)}; the arguments are on {device}"
        return kernel.supports(*args)

    def _missing(self, backend: str, device: str) -> str | None:
        if any(kernel.backend == backend for kernel in self.kernels):
            return None
        if backend not in self._loaded:
            return f"runs on {_RUNS_ON[backend]}; the arguments are on {device}"
        return _UNAVAILABLE.get(backend) or f"{self.name} has no {backend} kernel"

    def _load(self, device: str) -> None:
        """Imports the kernel modules that arguments on ``device`` could use."""
        if "cpu" not in self._loaded:
            self._load_backend("cpu")
        if device in _ACCELERATORS or _forced in ("cuda", "triton"):
            for backend in ("cuda", "triton"):  # kernels are tried in this order
                if backend not in self._loaded:
                    self._load_backend(backend)

    def _load_backend(self, backend: str) -> None:
        package = importlib.import_module(f"ao_kernels.{backend}")
        if package.unavailable:
            _UNAVAILABLE[backend] = package.unavailable
        elif self.name in package.KERNELS:
            importlib.import_module(f"ao_kernels.{backend}.{self.name}")
        # Only now: an import that fails must fail again, not leave the reference in its place.
        self._loaded.add(backend)

    def _choose_direct(self) -> None:
        """Recomputes the direct entries after a kernel was added or forced."""
        self._most_tokens = _ASK if _forced is None else 0
        self._chosen.forget()
        usable = [k for k in self.kernels if _forced in (None, k.backend)]
        self._entries = entries(usable, self._chosen.direct if _forced is None else None)
        self._on_cpu = self._entries.get("cpu", ())
        self._on_cuda = self._entries.get("cuda", ())


_UNAVAILABLE: dict[str, str] = {}


def op(
    schema: str, *, tensors: tuple[str, ...], inline: bool = True
) -> Callable[[Callable[..., Any]], Op]:
    """Decorator that makes an :class:`Op` of a reference function.

    ``schema`` is the part of the torch.library schema after the name; ``tensors`` names the
    arguments that can be differentiated. ``inline``: compilers may see the reference where no
    kernel takes a call; False where it needs values of tensors.
    """
    return lambda reference: Op(reference, schema=schema, tensors=tensors, inline=inline)


def force(backend: str | None) -> str | None:
    """Uses only the kernels of ``backend``, or, with None, the best ones again.

    ``backend`` is "reference", "cpu", "cuda" or "triton"; a call that it cannot take raises.
    Returns what was forced before. The environment variable AO_KERNELS sets the initial value.
    """
    global _forced
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"unknown kernel backend {backend!r}; use one of {', '.join(_BACKENDS)}")
    previous, _forced = _forced, backend
    for each in OPS.values():
        each._choose_direct()
    for forget in FORGET:
        forget()
    return previous


def forced() -> str | None:
    """The backend that :func:`force` or AO_KERNELS has chosen, or None."""
    return _forced


def _device_of(args: tuple[Any, ...]) -> str:
    """The device of the first tensor; that of an empty list is the CPU."""
    if isinstance(args[0], list | tuple):
        return args[0][0].device.type if args[0] else "cpu"
    return args[0].device.type


def _tensors_in(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among arguments, and in lists among them."""
    for arg in args:
        each = arg if isinstance(arg, list | tuple) else (arg,)
        yield from (x for x in each if isinstance(x, Tensor))


def _save(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in inputs))
    ctx.others = tuple(None if isinstance(a, Tensor) else a for a in inputs)


def _saved(ctx: Any) -> tuple[Any, ...]:
    pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
    return tuple(other if tensor is None else tensor for tensor, other in pairs)


force(os.environ.get("AO_KERNELS") or None)
