"""WrappedParameter: a parameter that says something of its own to FSDP2 or to a product, and is an
ordinary tensor to optimizers, state dicts and everything else."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["WrappedParameter", "local_of", "unwrapped", "with_local"]

aten = torch.ops.aten


class WrappedParameter(Tensor):
    """`plain` is the memory. Views and copies keep the class, so that shards do; what is computed
    from it is an ordinary tensor."""

    plain: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, *args: Any) -> Any:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
            pin_memory=inner.device.type == "cpu" and inner.is_pinned(),
        )

    def _like(self, inner: Tensor, *, shares_memory: bool) -> "WrappedParameter":
        """What `inner`, a view or a copy of the memory, is wrapped in."""
        raise NotImplementedError

    def _written(self) -> None:
        """The values have changed in place, through this."""

    def _stable_hash_for_caching(self) -> str:  # under which compilers keep what they made
        return f"{type(self).__qualname__}{self.__tensor_flatten__()}"  # type: ignore[attr-defined]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.plain!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            new: Tensor = self._like(self.plain.detach().clone(), shares_memory=False)
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(new, self.requires_grad) if is_parameter else new
        return memo[id(self)]

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        owners: list[WrappedParameter] = []

        def unwrap(t: WrappedParameter) -> Tensor:
            owners.append(t)
            return t.plain

        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            if func in _VIEWS:
                with torch.inference_mode(False):  # an inference tensor cannot be told its memory
                    return cls.__torch_dispatch__(func, types, args, kwargs)
            if func._can_decompose():  # as `mT`, which else comes here as views
                return func.decompose(*args, **kwargs)
        plain = tree_map_only(WrappedParameter, unwrap, (args, kwargs))
        if func is aten.detach.default:
            found = owners[0].plain  # itself, so that one memory has one version
        else:
            found = func(*plain[0], **plain[1])
        if func._schema.is_mutable:
            for owner in _written_by(func, args, kwargs):
                owner._written()
        elif func in _VIEWS or func in _COPIES:
            like, shares = owners[0]._like, func in _VIEWS
            found = tree_map_only(Tensor, lambda t: like(t, shares_memory=shares), found)
        else:
            return found
        return return_and_correct_aliasing(func, args, kwargs, found)


def _written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[WrappedParameter]:
    """Of the arguments, those that an operation changes in place."""
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, WrappedParameter)]
    return found


_COPIES = {
    aten.clone.default,
    aten._to_copy.default,
    aten.new_zeros.default,
    aten.empty_like.default,
    aten._pin_memory.default,
}
_VIEWS = {
    aten.detach.default,
    aten.alias.default,
    aten.view.default,
    aten.as_strided.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.transpose.int,
    aten.permute.default,
}


def local_of(parameter: Tensor) -> Tensor:
    """The part that this rank holds, if the parameter is a DTensor; else itself."""
    return getattr(parameter, "_local_tensor", parameter)


def with_local(parameter: Any, local: Tensor) -> Tensor:
    """`local` in place of what this rank holds of the parameter."""
    if local_of(parameter) is parameter:
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def unwrapped(parameter: Tensor) -> Tensor:
    """A parameter as state dicts hold it: an ordinary tensor, or a DTensor of ordinary tensors, of
    the same memory."""
    local = local_of(parameter)
    return with_local(parameter, local.plain) if isinstance(local, WrappedParameter) else parameter
