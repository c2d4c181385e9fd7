"""Muon: momentum whose matrices are made orthogonal before they are a step, with low-bit momentum.

    m = momentum * m + (1 - momentum) * g              stored in state_bits
    u = momentum * m + (1 - momentum) * g              with nesterov, else u = m
    X = u / |u|, then ns_steps times  X = a X + (b A + c A A) X  with A = X X^T, in bfloat16
    p = p * (1 - lr * weight_decay) - lr * r * X       r of the matrix (N, K): see adjust_lr_fn

The last two dimensions of a parameter are its matrix (N, K); those before count matrices, such as
the experts of (E, N, K). Jordan et al., "Muon: an optimizer for hidden layers in neural networks"
(2024), has the coefficients; "match_rms_adamw" is from Liu et al., "Muon is scalable for LLM
training" (2025). Names and numbers are those of torch.optim.Muon.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import StateBits
from ao_core.rounding import random_bits, round_to_bfloat16

from .batches import Step, Work
from .loading import FullState
from .quantized import Number, QuantizedOptimizer
from .record import Layout, layout_of, read_moment, write_moment
from .sharding import element_index, is_sharded, local_part_as, whole_like

__all__ = ["Muon", "orthogonalized"]

ADJUSTMENTS = (None, "original", "match_rms_adamw")


class Muon(QuantizedOptimizer):
    """Muon with 8-bit momentum: 1 byte a parameter and 4 a block of 256.

    It is for the matrices of hidden layers. Embeddings, heads, norms and biases go to an optimizer
    of their own, AdamW8bit for example.

    Args:
        params: parameters with two dimensions or more, whose last two are a matrix.
        lr: learning rate, a number or a tensor of one element.
        weight_decay: decoupled.
        momentum: decay of the momentum, in [0, 1).
        nesterov: step from where the momentum will be.
        ns_coefficients: a, b and c of the iteration.
        eps: the least norm that a matrix is divided by.
        ns_steps: iterations, less than 100.
        adjust_lr_fn: None or "original": r = sqrt(max(1, N / K)); "match_rms_adamw":
            r = 0.2 * sqrt(max(N, K)), for the lr and weight_decay of AdamW.
        state_bits: of the momentum: 8, 4, "fp8" or 32; may differ between groups, as all options.
        block_size: consecutive elements of it that share a scale, a multiple of 8; None stands for
            256, or 128 with 4 bits.
        bf16_stochastic_round, seed: as in AdamW8bit.

    Of a DTensor the whole momentum is gathered for the iteration, on every rank; state and
    parameter stay parts. Raises ValueError for options out of range and for parameters without a
    matrix, TypeError for complex or integer ones.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Number = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        state_bits: StateBits = 8,
        block_size: int | None = None,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "state_bits": state_bits,
            "block_size": block_size,
            "bf16_stochastic_round": bf16_stochastic_round,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does; options that it does not name are the optimizer's."""
        params = param_group["params"]
        if not isinstance(params, set):  # which torch.optim refuses: it has no order
            params = [params] if isinstance(params, Tensor) else list(params)
            for entry in params:
                name, parameter = entry if isinstance(entry, tuple) else ("a parameter", entry)
                if isinstance(parameter, Tensor) and parameter.ndim < 2:
                    raise ValueError(
                        f"Muon takes matrices, {name} has shape {tuple(parameter.shape)}: give "
                        "norms, biases, embeddings and heads to an optimizer of their own, such "
                        "as AdamW8bit"
                    )
        super().add_param_group({**param_group, "params": params})

    def _check_options(self, options: dict[str, Any]) -> None:
        super()._check_options(options)
        if not 0 <= options["momentum"] < 1:
            raise ValueError(f"momentum is in [0, 1), got {options['momentum']}")
        if len(options["ns_coefficients"]) != 3:
            raise ValueError(f"ns_coefficients are three numbers, got {options['ns_coefficients']}")
        if not 0 <= options["ns_steps"] < 100:
            raise ValueError(f"ns_steps is less than 100, got {options['ns_steps']}")
        if options["adjust_lr_fn"] not in ADJUSTMENTS:
            raise ValueError(
                "adjust_lr_fn is None, 'original' or 'match_rms_adamw', got "
                f"{options['adjust_lr_fn']!r}"
            )

    def _layout_of(self, parameter: Tensor, group: Mapping[str, Any]) -> Layout:
        layout = layout_of(parameter, {**group, "amsgrad": False})
        return dataclasses.replace(layout, moments=("momentum_buffer",))

    def _full_state(self) -> FullState:
        """torch.optim.Muon counts no steps; here they choose random bits, and begin at 0 then."""
        options = (
            *("lr", "weight_decay", "momentum", "nesterov"),
            *("ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"),
        )
        return FullState("torch.optim.Muon", options, {}, counts=False)

    def _advance(self, works: list[Work]) -> None:
        """One NaN or inf in a gradient makes its whole matrix NaN, as in torch.optim.Muon. Ranks
        that share DTensors call this together."""
        for work in works:
            for step in work.each():
                self._advance_one(step)

    def _advance_one(self, step: Step) -> None:
        place, parameter, p, g, group, layout, record, number = step
        m, momentum = read_moment(record, "momentum_buffer", layout), group["momentum"]
        g = g.to(layout.dtype)
        m.lerp_(g, 1 - momentum)
        u = g.lerp(m, momentum) if group["nesterov"] else m
        write_moment(record, "momentum_buffer", m, layout)
        whole: Any = whole_like(u, parameter)
        x = orthogonalized(
            whole.full_tensor() if is_sharded(whole) else whole,
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        x = local_part_as(x, parameter)
        lr = float(group["lr"])
        new = p.to(layout.dtype) * (1 - lr * group["weight_decay"])
        new.add_(x, alpha=-lr * _adjustment(group["adjust_lr_fn"], parameter.shape))
        if group["bf16_stochastic_round"] and p.dtype == torch.bfloat16:
            index = element_index(parameter)
            bits = random_bits(index, seed=group["seed"], stream=place, step=number)
            new = round_to_bfloat16(new, bits)
        p.copy_(new)


def orthogonalized(
    u: Tensor, *, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """About the nearest orthogonal matrix of each (N, K) of u (..., N, K), in bfloat16.

    Singular values end between about 0.7 and 1.2, not at 1: the coefficients are for few steps.
    """
    a, b, c = coefficients
    x = u.bfloat16().flatten(0, -3) if u.ndim > 2 else u.bfloat16()
    tall = u.shape[-2] > u.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        gram = fused(gram, gram, gram, beta=b, alpha=c)
        x = fused(x, gram, x, beta=a)
    return (x.mT if tall else x).reshape(u.shape)


def _adjustment(kind: str | None, shape: torch.Size) -> float:
    N, K = shape[-2:]
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(N, K))
    return math.sqrt(max(1, N / K))
