"""A real model on real text: losses of every optimizer from the same seed, beside torch's."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny_model import batches, tiny_llama
from torch.optim import Optimizer

import ao_optim

STEPS = 60
CLASSES = {
    "AdamW8bit": torch.optim.AdamW,
    "AdamW4bit": torch.optim.AdamW,
    "AdamWFp8": torch.optim.AdamW,
    "AdamW": torch.optim.AdamW,
    "Adam8bit": torch.optim.Adam,
    "Adam4bit": torch.optim.Adam,
    "AdamFp8": torch.optim.Adam,
}

DECAY = {torch.optim.AdamW: 0.01, torch.optim.Adam: 1e-4}


def trained(make: object, *, steps: int = STEPS, dtype: torch.dtype = torch.float32) -> float:
    """Loss on text that was not trained on, behind `steps` steps."""
    torch.set_num_threads(1)
    model = tiny_llama(dtype=dtype)
    optimizer: Optimizer = make(model.parameters())  # type: ignore[operator]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches(steps):
        model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        return sum(model.loss(batch).item() for batch in batches(8, seed=1)) / 8


@functools.cache
def reference(kind: type[Optimizer]) -> float:
    return trained(lambda params: kind(params, lr=3e-3, weight_decay=DECAY[kind]))


@pytest.mark.parametrize("name", CLASSES)
def test_losses_are_those_of_torch(name: str) -> None:
    kind = getattr(ao_optim, name)
    decay = DECAY[CLASSES[name]]
    loss = trained(lambda params: kind(params, lr=3e-3, weight_decay=decay))
    expected = reference(CLASSES[name])
    print(f"{name}: {loss:.4f}, torch {expected:.4f}")
    assert expected < 3.0  # bytes at random: 5.5; their frequencies alone: about 3.2
    limit = 1e-3 if name == "AdamW" else 0.01 if name.endswith("4bit") else 0.005
    assert abs(loss / expected - 1) < limit


def test_stochastic_rounding_matters_with_bfloat16_weights() -> None:
    """With steps below half the spacing of bfloat16, rounding to nearest loses most of them."""
    sides = {
        "float32": (torch.float32, False),
        "to nearest": (torch.bfloat16, False),
        "stochastic": (torch.bfloat16, True),
    }
    losses = {
        name: trained(
            lambda params, r=rounded: ao_optim.AdamW8bit(params, lr=1e-4, bf16_stochastic_round=r),
            dtype=dtype,
        )
        for name, (dtype, rounded) in sides.items()
    }
    print(losses)
    lost, kept = (losses[s] - losses["float32"] for s in ("to nearest", "stochastic"))
    assert lost > 5 * abs(kept)
