"""A language model of the shape of Llama: what the examples train and the benchmarks time.

B sequences, T tokens of each, D width, H heads, J key and value heads, F width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `blocks` of Llama-3-8B are (4096, 32, 8, 14336)."""

    width: int
    heads: int
    kv_heads: int
    mlp: int
    layers: int
    vocabulary: int = 256
    tied: bool = True  # the head shares the embedding's weight


SHAPES = {
    "tiny": Shape(width=64, heads=4, kv_heads=2, mlp=192, layers=2),
    "100m": Shape(width=1024, heads=16, kv_heads=16, mlp=4096, layers=7),
    "8b-block": Shape(width=4096, heads=32, kv_heads=8, mlp=14336, layers=4),
}


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head = shape.width // shape.heads
        self.q_proj = nn.Linear(shape.width, shape.heads * self.head, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * self.head, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * self.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * self.head, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(shape.width), nn.RMSNorm(shape.width)
        self.attention, self.mlp = Attention(shape), MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """tokens (B, T) -> logits (B, T, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def initialize(self) -> None:
        """Normal weights of 0.02; those that add to the residual stream smaller."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                small = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.shape.layers) ** 0.5 if small else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        head = self.shape.width // self.shape.heads
        cos, sin = turns(tokens.shape[1], head, x.device, x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))

    def loss(self, text: Tensor) -> Tensor:
        """Cross entropy of each token after those in front of it; text (B, T + 1)."""
        logits = self(text[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), text[:, 1:].flatten())


def turns(
    length: int, head: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin (T, head / 2) of rotary positions, base 500000."""
    rates = 500000 ** -(torch.arange(0, head, 2, device=device).float() / head)
    turn = torch.arange(length, device=device)[:, None] * rates
    return turn.cos().to(dtype), turn.sin().to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Halves of a head are the two coordinates; x (B, H, T, head)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
