"""Selective activation checkpointing that keeps casts: a recomputed block multiplies, but does not
cast its inputs again.

    from torch.utils.checkpoint import checkpoint
    y = checkpoint(block, x, use_reentrant=False, context_fn=float8_checkpoint_contexts)

Kept are the codes of inputs in both directions, 2 bytes an element where bfloat16 has 2. Weights
are cast again, unless `weight_cache="step"` keeps their codes.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

__all__ = ["float8_checkpoint_contexts", "keep_float8_casts"]

_CASTS = (
    "quantize_tensorwise_both",
    "quantize_rowwise_both",
    "quantize_grouped_both",
    "quantize_block_both",
    "quantize_mx",
)


def keep_float8_casts(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """A policy of torch.utils.checkpoint: save what casts of inputs give, prefer to recompute the
    rest."""
    if op in _overloads() and not _is_weight(args[0]):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _is_weight(x: Any) -> bool:
    """A parameter, or the memory of experts (E, N, K): inputs are cast with two dimensions."""
    return isinstance(x, nn.Parameter) or x.dim() == 3


def float8_checkpoint_contexts() -> Any:
    """The `context_fn` of torch.utils.checkpoint with `keep_float8_casts`."""
    return create_selective_checkpoint_contexts(keep_float8_casts)


def _overloads() -> tuple[Any, ...]:
    return tuple(getattr(torch.ops.ao, name).default for name in _CASTS)
