"""A language model of the shape of Llama, 2 layers of 64, on bytes; and text that Python ships."""

from __future__ import annotations

import pydoc_data.topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 2, 64, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rotated(heads[0], turn), rotated(heads[1], turn), heads[2]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: halves of a head are the two coordinates."""
    a, b = x.chunk(2, -1)
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class TinyLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        rates = 10000 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
        turn = torch.arange(tokens.shape[1])[:, None] * rates
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, turn)
        return self.head(self.norm(x))

    def loss(self, text: Tensor) -> Tensor:
        logits = self(text[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def tiny_llama(seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyLlama:
    torch.manual_seed(seed)
    model = TinyLlama()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)
    return model.to(dtype)


def corpus() -> Tensor:
    """Python's language reference, as bytes."""
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def batches(steps: int, seed: int = 0) -> list[Tensor]:
    data, generator = corpus(), torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - CONTEXT - 1, (steps, BATCH), generator=generator)
    return list(data[starts[..., None] + torch.arange(CONTEXT + 1)])
