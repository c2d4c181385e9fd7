"""FSDP2 with float8 all-gather, tensor and sequence parallel, in two gloo processes; and the
parameter that FSDP2 gathers, alone."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from layers import emulated, layer
from mesh_training import train_on_both_meshes
from parallel_training import check_mesh
from sharded_experts import check_sharded_experts
from sharded_training import check_more_ranks
from torch import nn

from ao_core.testing.sharding_contract import run_processes, run_two_processes
from ao_float8 import convert_to_float8_training
from ao_float8.fsdp import ShardedWeight


def test_mesh() -> None:
    run_two_processes(check_mesh)


def test_three_ranks() -> None:
    run_processes(3, check_more_ranks)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_mesh_of_two_gpus() -> None:
    """By NCCL, and by the products of the hardware."""
    run_two_processes(check_mesh, device="cuda")


@pytest.mark.parametrize("world", [2, 3])
def test_experts(world: int) -> None:
    run_processes(world, check_sharded_experts)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_experts_on_two_gpus() -> None:
    run_two_processes(check_sharded_experts, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_example_on_two_gpus() -> None:
    run_two_processes(train_on_both_meshes, "cuda", device="cuda")


def test_a_weight_to_gather_is_an_ordinary_parameter() -> None:
    config = emulated(enable_fsdp_float8_all_gather=True)
    plain, module = layer(40, 24), layer(40, 24, config)
    module.load_state_dict(plain.state_dict())
    assert isinstance(module.weight, ShardedWeight) and isinstance(module.weight, nn.Parameter)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.01) for m in (plain, module)]
    for step in range(2):
        x = torch.randn(16 << step, 40)
        for m, optimizer in zip((plain, module), optimizers, strict=True):
            m(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    state = module.state_dict()
    assert type(state["weight"]) is torch.Tensor
    assert torch.equal(state["weight"], plain.weight)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True)["weight"], plain.weight)
    other = copy.deepcopy(module)
    assert isinstance(other.weight, ShardedWeight) and torch.equal(other(x), module(x))
    assert other.weight.plain.data_ptr() != module.weight.plain.data_ptr()


def test_nothing_is_copied() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    before = model[0].weight.data_ptr()
    convert_to_float8_training(model, config=emulated(enable_fsdp_float8_all_gather=True))
    assert model[0].weight.plain.data_ptr() == before
    back = model[0].to_float()
    assert type(back.weight) is nn.Parameter and back.weight.data_ptr() == before
