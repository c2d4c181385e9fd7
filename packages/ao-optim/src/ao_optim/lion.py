"""Lion: the sign of the momentum is the step; its momentum takes a byte a parameter.

    u = sign(beta1 * m + (1 - beta1) * g)
    p = p * (1 - lr * weight_decay) - lr * u
    m = beta2 * m + (1 - beta2) * g

p parameter, g gradient, m exp_avg. Chen et al., "Symbolic Discovery of Optimization Algorithms"
(2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ao_core.moments import StateBits

from .batches import Work
from .loading import FullState
from .quantized import Number, QuantizedOptimizer
from .record import Layout, layout_of
from .steps import lion_steps

__all__ = ["Lion8bit"]


class Lion8bit(QuantizedOptimizer):
    """Lion with momentum in 8 bits, 1 byte a parameter and 4 a block.

    The step of every element is lr whatever its gradient: lr is usually 3 to 10 times smaller than
    for AdamW, and weight_decay as many times larger.

    Args:
        params: parameters, named parameters or groups of them, as torch.optim takes them.
        lr: learning rate; lr, betas and weight_decay are numbers or tensors of one element and may
            change between any two steps.
        betas: of the mixture whose sign is the step, and of the momentum, each in [0, 1).
        weight_decay: decoupled.
        maximize: go up the gradient.
        block_size, bf16_stochastic_round, seed: as in AdamW8bit.
        state_bits: 8, 4, "fp8" or 32 (full precision); may differ between groups.

    The state in full precision is exp_avg, which `from_bitsandbytes_state_dict` gives, too.

    Raises ValueError for options out of range, TypeError for complex or integer parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        block_size: int | None = None,
        state_bits: StateBits = 8,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "block_size": block_size,
            "state_bits": state_bits,
            "bf16_stochastic_round": bf16_stochastic_round,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def _layout_of(self, parameter: Tensor, group: Mapping[str, Any]) -> Layout:
        layout = layout_of(parameter, {**group, "amsgrad": False})
        return dataclasses.replace(layout, moments=("exp_avg",))

    def _full_state(self) -> FullState:
        return FullState("Lion", ("lr", "betas", "weight_decay", "maximize"), {})

    def _advance(self, works: list[Work]) -> None:
        lion_steps(works, gradient_scale=self._gradient_scale)

    def _scales_gradients(self) -> bool:
        return True
