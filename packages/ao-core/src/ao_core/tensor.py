"""QTensor: the base of every quantized tensor.

A subclass lists its fields once, as annotations. Tensor fields (`Tensor`, or `Tensor | None` when
optional) are data, all others are metadata. It says in `field_layout()` how each data field follows
the logical dimensions, and how to `dequantize()`. Everything else is derived here and in
`tensor_ops`: construction, flatten / unflatten for the compiler, repr, detach / clone / to / copy_,
views on block-aligned coordinates, pickling under `weights_only=True`, the checkpoint layout,
FSDP2's all-gather hooks and DTensor sharding.

    class Int8Tensor(QTensor):
        codes: Tensor           # (N, K) int8
        scale: Tensor           # (N, G) float32
        group_size: int

        def field_layout(self):   # how each field follows each dimension: see Dim
            return {"codes": ((1, 1), (1, 1)), "scale": (1, self.group_size)}

        def dequantize(self): ...

Operations are defined on a class with `implements`; functions take their natural arguments. What is
not defined raises a sentence that names the operation, the tensor and the way out.
"""

import copy
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from .errors import UnsupportedOpError
from .fsdp import gather_inputs, gathered_weight

__all__ = ["Dim", "QTensor", "register_tensor", "tensor_class"]

Dim = tuple[int, int] | int | None
"""How a field follows one logical dimension.

    (n, m)   n logical elements are stored as m, in order: codes
    g        one stored value is shared by g consecutive logical elements: scales
    None     one stored value is shared by the whole dimension, whatever its size
"""


class QTensor(Tensor):
    """A weight stored in a quantized format. `shape` and `dtype` are those of the float tensor it
    stands for.

    transposed: the last two logical dimensions are swapped with respect to the fields (a view, as
    `w.t()`).
    """

    transposed: bool

    _data: ClassVar[tuple[str, ...]] = ()
    _optional: ClassVar[frozenset[str]] = frozenset()
    _meta: ClassVar[tuple[str, ...]] = ("transposed",)
    _table: ClassVar[dict[Any, Callable[..., Any]]] = {}
    _aliasing: ClassVar[set[Any]] = set()

    # --- declaration

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        data, meta, optional = list(cls._data), list(cls._meta), set(cls._optional)
        for name, kind in inspect.get_annotations(cls, eval_str=True).items():
            if (
                name.startswith("_")
                or typing.get_origin(kind) is ClassVar
                or name in data
                or name in meta
            ):
                continue
            parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
            if Tensor in parts:
                data.append(name)
                if type(None) in parts:
                    optional.add(name)
            else:
                meta.append(name)
        cls._data, cls._meta, cls._optional = tuple(data), tuple(meta), frozenset(optional)
        cls._table = {
            op: fn
            for base in reversed(cls.__mro__)
            for op, fn in base.__dict__.get("_table", {}).items()
        }
        torch.serialization.add_safe_globals([cls, _rebuild])

    @classmethod
    def implements(
        cls, *ops: Any, aliasing: bool = False
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: this function is what `ops` (torch functions or aten overloads) do for `cls`.

        An overload that torch defines only later is given by name, as `str(op)` spells it.
        `aliasing=True` marks views, whose outputs share storage with the first argument.
        """

        def register(fn: Callable[..., Any]) -> Callable[..., Any]:
            for op in ops:
                cls._table[op] = fn
                if aliasing:
                    QTensor._aliasing.add(op)
            return fn

        return register

    # --- construction

    @staticmethod
    def __new__(
        cls, *, shape: torch.Size, dtype: torch.dtype, transposed: bool = False, **fields: Any
    ) -> "QTensor":
        device = fields[cls._data[0]].device
        return Tensor._make_wrapper_subclass(
            cls,
            shape,
            strides=_strides(shape, transposed),
            dtype=dtype,
            device=device,
            requires_grad=False,
        )

    def __init__(
        self, *, shape: torch.Size, dtype: torch.dtype, transposed: bool = False, **fields: Any
    ) -> None:
        known = set(self._data) | set(self._meta) - {"transposed"}
        if set(fields) | self._optional != known | self._optional or set(fields) - known:
            raise TypeError(
                f"{type(self).__name__}: fields are {sorted(known)}, got {sorted(fields)}"
            )
        for name in self._optional:
            fields.setdefault(name, None)
        self.__dict__.update(fields, transposed=transposed)
        # Asked for twice a weight and call by compiled code: built once (135M-parameter decoding,
        # 210 weights: 13 us a weight and call when built each time).
        self._flat = (list(self.tensors()), (dtype, tuple(self.metadata().items())))

    @classmethod
    def from_float(cls, w: Tensor, **options: Any) -> "QTensor":
        """Quantize `w`. Subclasses define the options."""
        raise NotImplementedError(f"{cls.__name__} does not define from_float")

    def dequantize(self) -> Tensor:
        """The float tensor that this one stands for: same shape, dtype and device."""
        raise NotImplementedError(f"{type(self).__name__} does not define dequantize")

    def requantize(self, w: Tensor) -> "QTensor":
        """A new tensor of the same format and options, from the float weight `w` of the same
        shape."""
        raise NotImplementedError(f"{type(self).__name__} does not define requantize")

    def kernel_for(self, tokens: int, bias: Tensor | None = None) -> tuple[str, str] | None:
        """The kernel of a linear of `tokens` activations, and a warning where it is slower than
        bfloat16, or ""; None where the format has no such kernels. Reports ask for it."""
        return None

    def field_layout(self) -> Mapping[str, tuple[Dim, ...]]:
        """For each data field that is present: how it follows each dimension of the untransposed
        tensor."""
        raise NotImplementedError(f"{type(self).__name__} does not define layout")

    def check(self) -> None:
        """ValueError unless fields, metadata and shape fit each other. Works on meta tensors:
        readers of files call it first.

        Here the shapes are compared with `field_layout()`; a subclass adds its dtypes and the
        ranges of its metadata.
        """
        shape = list(self.shape)
        if self.transposed:
            shape[-2:] = shape[:-3:-1]
        for name, rules in self.field_layout().items():
            expected = []
            for size, rule in zip(shape, rules, strict=True):
                logical, stored = (
                    rule if isinstance(rule, tuple) else (max(size, 1) if rule is None else rule, 1)
                )
                if logical < 1:
                    raise ValueError(f"a block of {name} has {logical} elements")
                expected.append(1 if rule is None else -(-size // logical) * stored)
            if list(self.__dict__[name].shape) != expected:
                found = list(self.__dict__[name].shape)
                raise ValueError(
                    f"{name} has shape {found}, but a weight of shape {list(self.shape)} needs "
                    f"{expected}"
                )

    @torch.no_grad()
    def update_(self, w: Tensor) -> "QTensor":
        """Requantize from `w` into this tensor's own storage, so that every holder of it sees the
        new weight."""
        if tuple(w.shape) != tuple(self.shape):
            raise ValueError(
                f"update_: the weight has shape {tuple(self.shape)}, got {tuple(w.shape)}"
            )
        self.copy_(self.requantize(w.to(self.device)))
        return self

    # --- fields

    def tensors(self) -> dict[str, Tensor]:
        """The data fields that are present, by name."""
        return {name: self.__dict__[name] for name in self._data if self.__dict__[name] is not None}

    def metadata(self) -> dict[str, Any]:
        """The metadata fields by name, `transposed` included."""
        return {name: self.__dict__[name] for name in self._meta}

    def map(self, fn: Callable[[Tensor], Tensor], **change: Any) -> "QTensor":
        """A copy with `fn` applied to every data field; `change` replaces shape, dtype or
        metadata."""
        fields = {
            name: None if t is None else fn(t)
            for name in self._data
            for t in (self.__dict__[name],)
        }
        return self.rebuild(**fields, **change)

    def rebuild(self, **change: Any) -> "QTensor":
        """A copy with some fields, the shape or the dtype replaced."""
        arguments = {"shape": self.shape, "dtype": self.dtype, **self.metadata()}
        arguments |= {name: self.__dict__[name] for name in self._data}
        return type(self)(**(arguments | change))

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes that the data fields take."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    # --- compiler

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        return self._flat

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], context: Any, outer_size: Any, outer_stride: Any
    ) -> "QTensor":
        dtype, metadata = context
        fields: dict[str, Any] = {**dict.fromkeys(cls._optional), **inner, **dict(metadata)}
        return cls(shape=outer_size, dtype=dtype, **fields)

    def _stable_hash_for_caching(self) -> str:
        fields = [
            (k, t.dtype, tuple(t.shape), tuple(t.stride())) for k, t in self.tensors().items()
        ]
        return repr(
            (type(self).__module__, type(self).__qualname__, self.__tensor_flatten__(), fields)
        )

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = cls._table.get(func)
        if handler is not None:
            return handler(*args, **kwargs) if kwargs else handler(*args)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        owner = next((t for t in types if issubclass(t, QTensor)), cls)
        handler = owner._table.get(func) or owner._table.get(str(func))
        if handler is None and torch.is_inference_mode_enabled() and func._can_decompose():
            # Autograd's keys, which are off, do this otherwise.
            return func.decompose(*args, **kwargs)
        if handler is None:
            raise UnsupportedOpError(
                f"{func} is not defined for {owner.__name__}. Call .dequantize() first to work on "
                f"the float weight, or define it with @{owner.__name__}.implements({func})."
            )
        if func not in QTensor._aliasing:
            return handler(*args, **kwargs)
        if torch.is_inference_mode_enabled() and not args[0].is_inference():
            with torch.inference_mode(False):  # a view of a normal tensor is a normal tensor
                return return_and_correct_aliasing(func, args, kwargs, handler(*args, **kwargs))
        return return_and_correct_aliasing(func, args, kwargs, handler(*args, **kwargs))

    # --- Python protocols

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        parts = [f"shape={tuple(self.shape)}", f"dtype={self.dtype}", f"device='{self.device}'"]
        parts += [f"{k}={v!r}" for k, v in self.metadata().items() if v not in (None, False)]
        parts += [
            f"{k}={str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
            for k, t in self.tensors().items()
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: self.__dict__[name] for name in self._data} | self.metadata()
        is_parameter = isinstance(self, torch.nn.Parameter)
        return _rebuild, (type(self), tuple(self.shape), self.dtype, state, is_parameter)

    def __deepcopy__(self, memo: dict[int, Any]) -> "QTensor":
        if id(self) not in memo:
            new = self.map(lambda t: copy.deepcopy(t, memo))
            memo[id(self)] = (
                torch.nn.Parameter(new, requires_grad=False)
                if isinstance(self, torch.nn.Parameter)
                else new
            )
        return memo[id(self)]

    # --- FSDP2

    def fsdp_pre_all_gather(
        self,
        mesh: Any,
        outer_size: Any = None,
        outer_stride: Any = None,
        module: Any = None,
        mp_policy: Any = None,
    ) -> tuple[tuple[Tensor, ...], Any]:
        """What FSDP2 gathers, see `ao_core.fsdp`."""
        return gather_inputs(self, mesh.size(), outer_size)

    def fsdp_post_all_gather(
        self,
        gathered: tuple[Tensor, ...],
        metadata: Any,
        param_dtype: torch.dtype,
        *,
        out: Any = None,
    ) -> Any:
        """The whole weight from what was gathered; None where it is in `out` afterwards."""
        return gathered_weight(self, gathered, metadata, out)


_CLASSES: dict[str, type[QTensor]] = {}


def register_tensor(cls: type[QTensor]) -> type[QTensor]:
    """Class decorator: checkpoints may name `cls`, by its class name. Nothing else is ever looked
    up."""
    if _CLASSES.setdefault(cls.__name__, cls) is not cls:
        raise TypeError(
            f"register_tensor: a tensor class named {cls.__name__} is registered already"
        )
    return cls


def tensor_class(name: str) -> type[QTensor]:
    """The registered class of that name; KeyError lists the known ones."""
    if name not in _CLASSES:
        known = ", ".join(sorted(_CLASSES)) or "none: import the package that defines it"
        raise KeyError(f"no tensor class named {name!r} is registered; known: {known}")
    return _CLASSES[name]


def _strides(shape: torch.Size, transposed: bool) -> tuple[Any, ...]:
    order = list(range(len(shape)))
    if transposed:
        order[-1], order[-2] = order[-2], order[-1]
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step = step * shape[dim]
    return tuple(strides)


def _rebuild(
    cls: type[QTensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    state: dict[str, Any],
    is_parameter: bool,
) -> Tensor:
    """What a pickled QTensor is rebuilt with; the only function that
    `torch.load(weights_only=True)` needs to allow."""
    if not (isinstance(cls, type) and issubclass(cls, QTensor)):
        raise TypeError(f"a pickled quantized tensor names {cls!r}, which is not one")
    new = cls(shape=torch.Size(shape), dtype=dtype, **state)
    return torch.nn.Parameter(new, requires_grad=False) if is_parameter else new


from . import collectives, tensor_ops, tensor_shapes  # noqa: E402,F401  they fill QTensor._table
