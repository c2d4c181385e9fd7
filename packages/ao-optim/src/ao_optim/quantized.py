"""What optimizers with quantized moments share: groups, checks, and state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from ao_core.moments import FORMATS

from .batches import Planner, Work
from .loading import FullState, checked_full_state, checked_state, full_state, own_state

__all__ = ["Number", "QuantizedOptimizer"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Number = float | Tensor


class QuantizedOptimizer(Optimizer):
    """The base of the optimizers; one defines `_advance`, and `_layout_of` if its moments are not
    those of Adam."""

    _gradient_scale = 1.0  # that a step applies to factors of gradients, where it can

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {**defaults, "optimizer": type(self).__name__})
        self._planner = Planner()

    def _advance(self, works: list[Work]) -> None:
        """Change parameters and records, whose steps are counted already."""
        raise NotImplementedError

    def _scales_gradients(self) -> bool:
        """Whether steps apply `_gradient_scale`."""
        return False

    def _full_state(self) -> FullState:
        """What `full_state_dict` gives and `load_full_state_dict` takes."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._planner = Planner()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does; options that it does not name are the optimizer's."""
        group = dict(param_group)
        options = {**self.defaults, **group}
        if options["block_size"] is None:
            row = FORMATS.get(options["state_bits"], FORMATS[8])
            group["block_size"] = options["block_size"] = row.block_size
        self._check_options(options)
        params = group["params"]
        if not isinstance(params, set):  # which torch.optim refuses: it has no order
            group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for entry in group["params"]:
            name, parameter = entry if isinstance(entry, tuple) else ("a parameter", entry)
            if isinstance(parameter, Tensor) and parameter.dtype not in DTYPES:
                known = ", ".join(str(dtype) for dtype in DTYPES)
                raise TypeError(
                    f"{type(self).__name__}: {name} has {parameter.dtype}; allowed are {known}. "
                    "Give the real and imaginary parts as parameters of their own, or leave it out"
                )
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what the closure returns.

        Nothing is changed if a gradient is sparse (NotImplementedError) or the state does not fit
        the options of its group any more (ValueError). NaN and inf in a gradient make the
        element's parameter NaN, as in torch.optim.AdamW (inf not in Lion). Where its state is
        quantized, the rest of its block becomes NaN with the next step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._advance(self._planner.works(self))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Options and state, to continue bit for bit; of DTensor parameters it holds DTensors, for
        torch.distributed.checkpoint. `ao_optim.resharding` documents the tensors."""
        return own_state(self, super().state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` of the same class gave, to continue bit for bit.

        All is checked before anything is changed: the class, the number of parameters of every
        group, state_bits, block_size, and each tensor's name, dtype and shape. ValueError says what
        does not fit. Options of the groups come from the state dict, as in torch.optim.
        """
        self._load(state_dict, checked_state)

    def full_state_dict(self) -> dict[str, Any]:
        """The state in full precision, as torch's optimizer of the name takes it by
        `load_state_dict`: torch.optim.Adam, AdamW or Muon; exp_avg alone for Lion.

        Moments of DTensor parameters are DTensors laid out as the parameter.
        """
        return full_state(self, kind=self._full_state())

    def load_full_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of torch's optimizer of the name, or what `full_state_dict()` gave, and
        quantize it.

        Checked like `load_state_dict`. lr and the other options that torch's has come from the
        state dict; block_size, state_bits, bf16_stochastic_round and seed stay.
        """
        self._load(state_dict, partial(checked_full_state, kind=self._full_state()))

    def _load(self, state_dict: dict[str, Any], checked: Callable[..., dict[str, Any]]) -> None:
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            if changed is not None:
                state_dict = changed
        state = checked(self, state_dict)
        for group in state["param_groups"]:
            self._check_options(group)
        self.__setstate__(state)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _check_options(self, options: dict[str, Any]) -> None:
        """ValueError if options of a group are out of range."""
        bits, block_size, betas = options["state_bits"], options["block_size"], options.get("betas")
        for name in ("lr", "eps", "weight_decay"):
            if name not in options:
                continue
            if isinstance(options[name], Tensor) and options[name].numel() != 1:
                shape = tuple(options[name].shape)
                raise ValueError(f"{name} as a tensor has one element, got shape {shape}")
            if not options[name] >= 0:
                raise ValueError(f"{name} is 0 or more, got {options[name]}")
        if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"betas are two numbers in [0, 1), got {betas}")
        if isinstance(bits, bool) or (bits != 32 and bits not in FORMATS):
            raise ValueError(f"state_bits is 8, 4, 'fp8' or 32, got {bits!r}")
        if not isinstance(block_size, int) or block_size < 8 or block_size % 8:
            raise ValueError(f"block_size is a multiple of 8, got {block_size!r}")
        if not isinstance(options["seed"], int) or not 0 <= options["seed"] < 2**63:
            raise ValueError(f"seed is a number in [0, 2**63), got {options['seed']!r}")
