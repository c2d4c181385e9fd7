"""Adam and AdamW whose state takes 2, 1 or 8 bytes a parameter: 8 bits, 4 bits, float8 or full.

Every class has the arguments of torch.optim.AdamW that do not choose an implementation, and works
with what works with it: schedulers, GradScaler, clip_grad_norm_, closures, DTensor parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ao_core.moments import StateBits

from .batches import Work
from .loading import TORCH_OPTIONS, FullState
from .quantized import Number, QuantizedOptimizer
from .steps import adam_steps

__all__ = ["Adam4bit", "Adam8bit", "AdamFp8", "AdamW", "AdamW4bit", "AdamW8bit", "AdamWFp8"]


class QuantizedAdam(QuantizedOptimizer):
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
            `ao_core.rounding`; others are not affected.
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
        }
        super().__init__(params, defaults)

    def _advance(self, works: list[Work]) -> None:
        adam_steps(works, decoupled=self.decoupled, gradient_scale=self._gradient_scale)

    def _scales_gradients(self) -> bool:
        return self.decoupled

    def _full_state(self) -> FullState:
        options = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
        return FullState("torch.optim.Adam or AdamW", options, TORCH_OPTIONS, self.decoupled)


class AdamW(QuantizedAdam):
    """AdamW with full state, 8 bytes a parameter, float32 also for bfloat16 parameters."""


class AdamW8bit(QuantizedAdam):
    """AdamW with state in 8 bits, 2 bytes a parameter and 8 a block."""

    kind_bits = 8


class AdamW4bit(QuantizedAdam):
    """AdamW with state in 4 bits, 1 byte a parameter and 8 a block.

    Both moments are rounded such that the mean is the value (docs/numerics.md).
    """

    kind_bits = 4


class AdamWFp8(QuantizedAdam):
    """AdamW with state in float8 e4m3, 2 bytes a parameter and 8 a block."""

    kind_bits = "fp8"


class Adam8bit(QuantizedAdam):
    """Adam with state in 8 bits, 2 bytes a parameter and 8 a block."""

    kind_bits = 8
    decoupled = False


class Adam4bit(QuantizedAdam):
    """Adam with state in 4 bits, 1 byte a parameter and 8 a block, rounded as AdamW4bit's."""

    kind_bits = 4
    decoupled = False


class AdamFp8(QuantizedAdam):
    """Adam with state in float8 e4m3, 2 bytes a parameter and 8 a block."""

    kind_bits = "fp8"
    decoupled = False
