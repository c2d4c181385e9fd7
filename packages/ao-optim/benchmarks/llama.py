"""A model of the shape of Llama for the benchmarks of this folder, in plain torch.

B sequences, T tokens each, D width, H heads of size D / H, of which G hold keys and values, F width
of the feed-forward layer, V size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Llama", "Shape", "Stack"]


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int = 0


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D, size = shape.width, shape.width // shape.heads
        self.size = size
        self.attention_norm, self.mlp_norm = nn.RMSNorm(D), nn.RMSNorm(D)
        self.q = nn.Linear(D, shape.heads * size, bias=False)
        self.k = nn.Linear(D, shape.kv_heads * size, bias=False)
        self.v = nn.Linear(D, shape.kv_heads * size, bias=False)
        self.o = nn.Linear(shape.heads * size, D, bias=False)
        self.gate = nn.Linear(D, shape.hidden, bias=False)
        self.up = nn.Linear(D, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, D, bias=False)

    def forward(self, x_BTD: Tensor, turn: Tensor) -> Tensor:
        h = self.attention_norm(x_BTD)
        q, k, v = (
            w(h).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(
            rotated(q, turn),
            rotated(k, turn),
            v,
            is_causal=True,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        x_BTD = x_BTD + self.o(y.transpose(1, 2).flatten(2))
        h = self.mlp_norm(x_BTD)
        return x_BTD + self.down(F.silu(self.gate(h)) * self.up(h))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: the halves of a head are the two coordinates. turn (2, T, size / 2)."""
    cos, sin = turn.to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Stack(nn.Module):
    """Blocks alone; with `recompute` their activations are computed again in backward."""

    def __init__(self, shape: Shape, *, recompute: bool = False) -> None:
        super().__init__()
        self.shape, self.recompute = shape, recompute
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))

    def forward(self, x_BTD: Tensor) -> Tensor:
        half = self.shape.width // self.shape.heads // 2
        rates = 10000 ** -torch.linspace(0, 1, half, device=x_BTD.device)
        angles = torch.arange(x_BTD.shape[1], device=x_BTD.device)[:, None] * rates
        turn = torch.stack((angles.cos(), angles.sin()))
        for block in self.blocks:
            if self.recompute:
                x_BTD = checkpoint(block, x_BTD, turn, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, turn)
        return x_BTD


class Llama(nn.Module):
    """Tokens in, loss out; embedding and head are two matrices."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.stack = Stack(shape)
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for block in self.stack.blocks:
            for linear in (block.o, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * shape.layers) ** 0.5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """The mean loss of tokens 1.. of each sequence, given those before them, float32."""
        x = self.norm(self.stack(self.embedding(tokens_BT[:, :-1])))
        logits = self.head(x).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())
