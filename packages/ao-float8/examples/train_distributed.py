"""Train on a mesh as torchtitan does: tensor and sequence parallel inside FSDP2, compiled blocks,
and float8 wherever weights and tokens travel.

    torchrun --nproc-per-node 8 train_distributed.py --tensor-parallel 2 --compile

The order matters: convert, then tensor parallel, then compile, then shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any

import torch
import torch.distributed as dist
from llama import SHAPES, Llama
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from train_llama import batch, corpus

from ao_float8 import (
    Float8LinearConfig,
    convert_to_float8_training,
    precompute_float8_dynamic_scale_for_fsdp,
)
from ao_float8.tensor_parallel import (
    Float8ColwiseParallel,
    Float8RowwiseParallel,
    PrepareFloat8ModuleInput,
)


def block_plan() -> dict[str, Any]:
    """Tokens are sharded between the layers of a block, features inside; tokens are gathered once
    for q, k, v and once for gate, up, as codes."""
    one, three = (Shard(1),), (Shard(1), None, None)
    return {
        "attention_norm": SequenceParallel(),
        "attention": PrepareFloat8ModuleInput(
            input_layouts=three, desired_input_layouts=(Replicate(), None, None)
        ),
        "attention.q_proj": Float8ColwiseParallel(),
        "attention.k_proj": Float8ColwiseParallel(),
        "attention.v_proj": Float8ColwiseParallel(),
        "attention.o_proj": Float8RowwiseParallel(output_layouts=Shard(1)),
        "mlp_norm": SequenceParallel(),
        "mlp": PrepareFloat8ModuleInput(input_layouts=one, desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": Float8ColwiseParallel(),
        "mlp.up_proj": Float8ColwiseParallel(),
        "mlp.down_proj": Float8RowwiseParallel(output_layouts=Shard(1)),
    }


def parallelized(model: Llama, mesh: DeviceMesh, args: argparse.Namespace) -> Llama:
    config = Float8LinearConfig(enable_fsdp_float8_all_gather=True, emulate=args.device == "cpu")
    convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: name.startswith("blocks")
    )
    if mesh["tp"].size() > 1:
        outer = {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            "norm": SequenceParallel(),
            "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        }
        parallelize_module(model, mesh["tp"], outer)
        for block in model.blocks:
            parallelize_module(block, mesh["tp"], block_plan())
    if args.compile:
        for block in model.blocks:
            block.compile(backend=args.backend)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh["dp"], mp_policy=policy)
    return fully_shard(model, mesh=mesh["dp"], mp_policy=policy)


def train(args: argparse.Namespace) -> list[float]:
    """The losses of rank 0's sequences; every group of tensor parallel ranks has its own."""
    size = dist.get_world_size()
    parts = size // args.tensor_parallel, args.tensor_parallel
    mesh = init_device_mesh(args.device, parts, mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    shape = dataclasses.replace(SHAPES[args.shape], tied=False)
    model = Llama(shape).to(args.device)
    model.initialize()
    parallelized(model, mesh, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    data, _ = corpus([])
    losses = []
    for step in range(args.steps):
        own = step * parts[0] + mesh["dp"].get_local_rank()
        loss = model.loss(batch(data, args, own))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        precompute_float8_dynamic_scale_for_fsdp(model)
        losses.append(loss.item())
        if dist.get_rank() == 0:
            print(f"step {step}: loss {losses[-1]:.4f}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    train(args)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
