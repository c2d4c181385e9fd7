"""What each of two processes trains: Mixtral of Transformers in float8, by FSDP2 and a low-bit
optimizer."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from ao_float8 import Float8LinearConfig
from ao_float8.experts import Float8Experts, convert_experts_to_float8_training
from ao_optim import AdamW8bit

E = 4


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        num_local_experts=E,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config)


def converted(cache: str = "pass") -> MixtralForCausalLM:
    model = mixtral()
    config = Float8LinearConfig.from_recipe_name("rowwise")
    convert_experts_to_float8_training(
        model, config=dataclasses.replace(config, emulate=True, weight_cache=cache)
    )
    return model


def tokens() -> Tensor:
    return (torch.arange(64).reshape(4, 16) * 5) % 128


def trained(model: MixtralForCausalLM) -> tuple[list[Tensor], list[float]]:
    """The weights, and the losses."""
    optimizer = AdamW8bit(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [w.detach() for w in weights], losses


def train_sharded() -> None:
    """All ranks have the same tokens, so that every bit is that of one process."""
    from torch.distributed.fsdp import fully_shard

    wanted, losses = trained(converted())
    assert losses[-1] < losses[0] - 0.3, losses
    model = converted()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found, sharded_losses = trained(model)
    assert sharded_losses == losses
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    held = [p._local_tensor for p in model.parameters()]
    assert sum(isinstance(p, Float8Experts) for p in held) == 4
