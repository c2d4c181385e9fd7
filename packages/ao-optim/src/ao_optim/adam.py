"""Adam and AdamW whose state takes 2, 1 or 8 bytes a parameter: 8 bits, 4 bits, float8 or full.

Every class has the arguments of torch.optim.AdamW that do not choose an implementation, and works
with what works with it: schedulers, GradScaler, clip_grad_norm_, closures, DTensor parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from .loading import checked_full_state, checked_state, full_state, own_state
from .moments import FORMATS, StateBits
from .steps import Known, adam_steps, gathered

__all__ = ["Adam4bit", "Adam8bit", "AdamFp8", "AdamW", "AdamW4bit", "AdamW8bit", "AdamWFp8"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Number = float | Tensor


class QuantizedAdam(Optimizer):
    """What the seven optimizers share; use one of them.

    Args:
        params: parameters, named parameters or groups of them, as torch.optim takes them.
        lr: learning rate; lr, betas and weight_decay are numbers or tensors of one element and may
            change between any two steps.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled for AdamW, added to the gradient for Adam.
        amsgrad: divide by the largest second moment so far; it is stored in the same format.
        maximize: go up the gradient.
        block_size: consecutive elements of the state that share a scale, a multiple of 8; None
            stands for 256, or 128 with 4 bits.
        state_bits: 8, 4, "fp8" or 32 (full precision); None stands for the class's own. Like every
            other option it may differ between groups.
        bf16_stochastic_round: round new bfloat16 parameters stochastically, see
            `ao_optim.rounding`; others are not affected.
        seed: of the random bits for that; a number in [0, 2**63).

    Raises ValueError for options out of range, TypeError for complex or integer parameters.
    """

    kind_bits: StateBits = 32
    decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Number | None = None,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        block_size: int | None = None,
        state_bits: StateBits | None = None,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        if weight_decay is None:
            weight_decay = 1e-2 if self.decoupled else 0.0
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "block_size": block_size,
            "state_bits": self.kind_bits if state_bits is None else state_bits,
            "bf16_stochastic_round": bf16_stochastic_round,
            "seed": seed,
            "optimizer": type(self).__name__,
        }
        super().__init__(params, defaults)
        self._known: dict[Tensor, Known] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._known = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does; options that it does not name are the optimizer's."""
        group = dict(param_group)
        options = {**self.defaults, **group}
        if options["block_size"] is None:
            row = FORMATS.get(options["state_bits"], FORMATS[8])
            group["block_size"] = options["block_size"] = row.block_size
        _check_options(options)
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
        the options of its group any more (ValueError). NaN and inf in a gradient behave as in
        torch.optim.AdamW: the element's parameter becomes NaN. Where its state is quantized, the
        rest of its block becomes NaN with the next step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        adam_steps(gathered(self, self._known), decoupled=self.decoupled)
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
        """The state in full precision, as torch.optim.Adam or AdamW takes it by `load_state_dict`.

        Moments of DTensor parameters are DTensors laid out as the parameter.
        """
        return full_state(self)

    def load_full_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of torch.optim.Adam or AdamW, or what `full_state_dict()` gave, and
        quantize it.

        Checked like `load_state_dict`. lr, betas, eps, weight_decay, amsgrad and maximize come from
        the state dict; block_size, state_bits, bf16_stochastic_round and seed stay.
        """
        self._load(state_dict, checked_full_state)

    def _load(self, state_dict: dict[str, Any], checked: Callable[..., dict[str, Any]]) -> None:
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            if changed is not None:
                state_dict = changed
        state = checked(self, state_dict)
        for group in state["param_groups"]:
            _check_options(group)
        self.__setstate__(state)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def _check_options(options: dict[str, Any]) -> None:
    betas, bits, block_size = options["betas"], options["state_bits"], options["block_size"]
    for name in ("lr", "eps", "weight_decay"):
        if isinstance(options[name], Tensor) and options[name].numel() != 1:
            shape = tuple(options[name].shape)
            raise ValueError(f"{name} as a tensor has one element, got shape {shape}")
        if not options[name] >= 0:
            raise ValueError(f"{name} is 0 or more, got {options[name]}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are two numbers in [0, 1), got {betas}")
    if isinstance(bits, bool) or (bits != 32 and bits not in FORMATS):
        raise ValueError(f"state_bits is 8, 4, 'fp8' or 32, got {bits!r}")
    if not isinstance(block_size, int) or block_size < 8 or block_size % 8:
        raise ValueError(f"block_size is a multiple of 8, got {block_size!r}")
    if not isinstance(options["seed"], int) or not 0 <= options["seed"] < 2**63:
        raise ValueError(f"seed is a number in [0, 2**63), got {options['seed']!r}")


class AdamW(QuantizedAdam):
    """AdamW with full state, 8 bytes a parameter, float32 also for bfloat16 parameters."""


class AdamW8bit(QuantizedAdam):
    """AdamW with state in 8 bits of dynamic maps, 2 bytes a parameter and 8 a block."""

    kind_bits = 8


class AdamW4bit(QuantizedAdam):
    """AdamW with state in 4 bits, 1 byte a parameter and 8 a block."""

    kind_bits = 4


class AdamWFp8(QuantizedAdam):
    """AdamW with state in float8 e4m3, 2 bytes a parameter and 8 a block."""

    kind_bits = "fp8"


class Adam8bit(QuantizedAdam):
    """Adam with state in 8 bits of dynamic maps, 2 bytes a parameter and 8 a block."""

    kind_bits = 8
    decoupled = False


class Adam4bit(QuantizedAdam):
    """Adam with state in 4 bits, 1 byte a parameter and 8 a block."""

    kind_bits = 4
    decoupled = False


class AdamFp8(QuantizedAdam):
    """Adam with state in float8 e4m3, 2 bytes a parameter and 8 a block."""

    kind_bits = "fp8"
    decoupled = False
