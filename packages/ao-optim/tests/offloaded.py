"""Base optimizers, ways to offload them, and bits to compare."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_optim import AdamW4bit, AdamW8bit, CPUOffloadOptimizer, StateOffloadOptimizer

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW8bit": (AdamW8bit, {"lr": 1e-2, "bf16_stochastic_round": True, "seed": 5}),
    "AdamW4bit": (AdamW4bit, {"lr": 1e-2, "amsgrad": True}),
    "torch AdamW": (torch.optim.AdamW, {"lr": 1e-2, "fused": True}),
    "torch SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
}
MODES: dict[str, Any] = {
    "gradients stay": CPUOffloadOptimizer,
    "gradients go": partial(CPUOffloadOptimizer, offload_gradients=True),
    "state": StateOffloadOptimizer,
    "state in backward": partial(StateOffloadOptimizer, step_in_backward=True),
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def bits(tensors: Any) -> list[bytes]:
    return [
        x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for x in tensors
    ]


def state_bits(state: dict[str, Any]) -> list[bytes]:
    return bits(
        x.reshape(-1)
        for record in state["state"].values()
        for x in record.values()
        if isinstance(x, Tensor)
    )
