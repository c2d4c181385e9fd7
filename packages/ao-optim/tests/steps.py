"""Optimizers, parameters and gradients that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ao_optim
from ao_optim import AdamW

LOW_BIT = (
    ao_optim.AdamW8bit,
    ao_optim.AdamW4bit,
    ao_optim.AdamWFp8,
    ao_optim.Adam8bit,
    ao_optim.Adam4bit,
    ao_optim.AdamFp8,
)
ALL = (*LOW_BIT, AdamW)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(values(*shape, seed=seed).to(dtype))


def stepped(optimizer: torch.optim.Optimizer, steps: int, *, start: int = 0) -> None:
    """Steps with gradients of different sizes that depend on the step's number alone."""
    for step in range(start, start + steps):
        place = 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                sizes = torch.logspace(-3, 0, p.shape[-1])
                p.grad = (values(*p.shape, seed=1000 * place + step + 1) * sizes).to(p.dtype)
                place += 1
        optimizer.step()
