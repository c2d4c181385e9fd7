"""An input that is a copy of what attention saves anyway need not be saved beside it.

The layer behind attention reads its output with heads and tokens exchanged and heads joined, which
is a copy: autograd keeps the output itself for attention's backward. Where a layer would save its
input as it is, it saves that output instead (no memory, the tensor is alive) and copies once more
in backward: of M x K bfloat16, 2 bytes an element fewer until backward, 4 moved.

B sequences, H heads, T tokens, D features of a head.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Source", "source_of"]

_VIEWS = ("ViewBackward0", "UnsafeViewBackward0")


class Source(NamedTuple):
    """x == output.transpose(*dims).reshape(x.shape), bit for bit."""

    output: Tensor
    dims: tuple[int, int]

    def copy(self, shape: torch.Size) -> Tensor:
        """x again."""
        return self.output.transpose(*self.dims).reshape(shape)


def source_of(x: Tensor) -> Source | None:
    """What `torch.nn.functional.scaled_dot_product_attention` gave and autograd keeps, if x is
    `output.transpose(...)` copied and viewed, as `.flatten(2)` and `.contiguous().view(...)` do.

    None for every other x; if x was changed in place; and if hooks (checkpointing, offloading) hold
    the output, which asking for it would recompute or bring back.
    """
    if type(x) is not Tensor or x._version or torch.is_inference_mode_enabled():
        return None
    clone = x.grad_fn
    while clone is not None and clone.name() in _VIEWS:
        clone = clone.next_functions[0][0]
    if clone is None or clone.name() != "CloneBackward0":
        return None
    turn: Any = clone.next_functions[0][0]
    if turn is None or turn.name() != "TransposeBackward0":
        return None
    attention: Any = turn.next_functions[0][0]
    if attention is None or not attention.name().startswith("ScaledDotProduct"):
        return None
    saved = getattr(attention, "_raw_saved_output", None)
    # torch without this attribute does not say whether there is a hook: then there may be one
    if saved is None or getattr(saved, "unpack_hook", saved) is not None:
        return None
    try:
        output = attention._saved_output.detach()
    except RuntimeError:  # freed by a backward pass, or changed in place: attention will say so
        return None
    # dimensions are saved as unsigned numbers: -1 is 2**64 - 1
    n_dims = output.dim()
    first, second = (d - 2**64 if d >= 2**63 else d for d in (turn._saved_dim0, turn._saved_dim1))
    if output.numel() != x.numel() or not (-n_dims <= first < n_dims > second >= -n_dims):
        return None
    return Source(output, (first, second))
