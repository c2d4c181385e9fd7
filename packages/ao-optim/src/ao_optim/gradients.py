"""What the offload optimizers share: the optimizers that they take, parameters in groups, and hooks
that take a gradient when backward has computed it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from .sharding import is_sharded

__all__ = ["as_groups", "check_dense", "check_optimizer_class", "hook_gradients"]

# Whose hooks take the gradient of a parameter: those of the optimizer that was built last.
_takers = WeakTensorKeyDictionary()
Taker = TypeVar("Taker", bound=Optimizer)


def check_optimizer_class(kind: Any) -> None:
    """TypeError if it is no class of optimizers, ValueError for those that look at all parameters
    at once."""
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise TypeError(
            f"optimizer_class is a class of optimizers, such as AdamW8bit, got {kind!r}"
        )
    if issubclass(kind, torch.optim.LBFGS):
        raise ValueError(
            f"{kind.__name__} cannot step for some parameters at a time; take an optimizer that "
            "treats each parameter alone"
        )


def as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameters, named parameters or groups of them, as a list of groups."""
    if isinstance(params, Tensor):
        raise TypeError("params is an iterable of parameters or groups, got a Tensor")
    if isinstance(params, set):
        raise TypeError("parameters in a set have no order: give a list")
    given = list(params)
    if given and isinstance(given[0], dict):
        return given
    return [{"params": given}]


def check_dense(gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise NotImplementedError(
            f"offload optimizers take dense gradients, got {gradient.layout}; build the embedding "
            "with sparse=False"
        )


def hook_gradients(
    parameter: Tensor, optimizer: Taker, receive: Callable[[Taker, Tensor], None]
) -> Any:
    """Call receive(optimizer, parameter) when backward has computed the parameter's gradient, as
    long as the optimizer lives and none that was built later takes it. Gives the hook's handle.

    Warns where parameters are replicated over processes: DistributedDataParallel averages gradients
    after this hook, which takes those of its own rank then.
    """
    dist = torch.distributed
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not is_sharded(parameter):
        warnings.warn(
            "offload optimizers take gradients before DistributedDataParallel averages them: "
            "under it, leave offload_gradients and step_in_backward out",
            stacklevel=2,
        )
    me = weakref.ref(optimizer)  # parameters outlive optimizers
    _takers[parameter] = me

    def hook(parameter: Tensor) -> None:
        taker = me()
        if taker is not None and _takers.get(parameter) is me:
            receive(taker, parameter)

    return parameter.register_post_accumulate_grad_hook(hook)
