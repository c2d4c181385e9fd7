"""What each process of a group checks: FSDP2 gathers codes, with the bits of gathering bfloat16."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ao_float8 import (
    Float8LinearConfig,
    convert_to_float8_training,
    precompute_float8_dynamic_scale_for_fsdp,
)
from ao_float8.config import RECIPES

SIZES = (40, 33, 24)  # 33 rows do not divide by two ranks


def device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def trained_by(recipe: str = "tensorwise", **changes: object) -> Float8LinearConfig:
    """Emulated on CPUs, by the products of the hardware on GPUs."""
    return dataclasses.replace(RECIPES[recipe], emulate=device() == "cpu", **changes)


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device())


class Counted(TorchDispatchMode):
    """Bytes that collectives give this rank, and how many reductions there were."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered, self.reductions = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func)
        if name.startswith("c10d") and "allgather" in name:
            outputs = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            for each in outputs:
                tensors = each if isinstance(each, (list, tuple)) else [each]
                self.gathered += sum(t.nbytes for t in tensors)
        self.reductions += "allreduce" in name
        found = func(*args, **(kwargs or {}))
        if name.startswith("_c10d_functional.all_gather_into_tensor"):
            self.gathered += found.nbytes
        return found


def model(dtype: torch.dtype, gather: bool, recipe: str = "tensorwise") -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2], bias=False)
    ).to(dtype)
    if not layers[0].weight.is_meta:
        layers.to(device())
    config = trained_by(recipe, enable_fsdp_float8_all_gather=gather)
    convert_to_float8_training(layers, config=config, module_filter_fn=lambda module, name: True)
    return layers


def sharded(layers: nn.Sequential, policy: object = None, mesh: object = None) -> nn.Sequential:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = mesh or dist.device_mesh.init_device_mesh(device(), (dist.get_world_size(),))
    policy = policy or MixedPrecisionPolicy()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(layers, mesh=mesh, mp_policy=policy)


def trained(layers: nn.Sequential, dtype: torch.dtype, *, precompute: bool = False) -> list[Tensor]:
    """Outputs of three steps, then the weights; each rank has data of its own."""
    optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
    found = []
    for step in range(3):
        x = values(20, SIZES[0], seed=10 * step + dist.get_rank()).to(dtype)
        y = layers(x)
        y.float().square().mean().backward()
        nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if precompute:
            precompute_float8_dynamic_scale_for_fsdp(layers)
        found.append(y.detach())
    return [*found, *(p.full_tensor().detach() for p in layers.parameters())]


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def check_parity() -> None:
    """The bits of gathering the dtype of the weights, with and without scales found before."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for dtype, policy in ((torch.bfloat16, None), (torch.float32, mixed)):
        inputs = torch.bfloat16 if policy else dtype
        wanted = trained(sharded(model(dtype, gather=False), policy), inputs)
        for precompute in (False, True):
            layers = sharded(model(dtype, gather=True), policy)
            assert equal(trained(layers, inputs, precompute=precompute), wanted), (dtype, policy)


def check_bytes() -> None:
    """Codes are half the bytes of bfloat16; scales found before save the reductions."""
    counts = {}
    for gather in (False, True):
        layers = sharded(model(torch.bfloat16, gather))
        x = values(20, SIZES[0], seed=0).bfloat16()
        layers(x).sum().backward()
        with Counted() as counted:
            layers(x)
        counts[gather] = counted
    world = dist.get_world_size()
    bias = -(-SIZES[1] // world) * world * 2  # elements, padded, that stay bfloat16
    weights = [counts[gather].gathered - bias for gather in (False, True)]
    assert weights[0] == 2 * weights[1] > 0, weights
    assert (counts[False].reductions, counts[True].reductions) == (0, 2)
    with Counted() as counted:
        precompute_float8_dynamic_scale_for_fsdp(layers)
        assert counted.reductions == 1
        layers(x)
        assert counted.reductions == 1


def check_stale_scales() -> None:
    """A scale is not used behind a step, or a change in place."""
    layers = sharded(model(torch.float32, gather=True))
    x = values(20, SIZES[0], seed=0)
    layers(x)
    precompute_float8_dynamic_scale_for_fsdp(layers)
    with torch.no_grad():
        for p in layers.parameters():
            p.mul_(100)
    plain = sharded(model(torch.float32, gather=False))
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(100)
    assert torch.equal(layers(x), plain(x))


def check_checkpoint() -> None:
    """State dicts hold ordinary tensors, of the same memory, and load both ways."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.tensor import DTensor

    layers = sharded(model(torch.bfloat16, gather=True))
    state = layers.state_dict()
    for name, value in state.items():
        assert type(value) is DTensor and type(value._local_tensor) is Tensor, name
    assert (
        state["0.weight"]._local_tensor.data_ptr()
        == layers[0].weight._local_tensor.plain.data_ptr()
    )
    full = get_model_state_dict(layers, options=StateDictOptions(full_state_dict=True))
    buffer = io.BytesIO()
    torch.save(full, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    ordinary = nn.Sequential(
        nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2], bias=False)
    )
    ordinary.load_state_dict(loaded)
    doubled = {name: 2 * value for name, value in full.items()}
    set_model_state_dict(layers, dict(doubled), options=StateDictOptions(full_state_dict=True))
    again = get_model_state_dict(layers, options=StateDictOptions(full_state_dict=True))
    for name, value in again.items():
        assert torch.equal(value, doubled[name]), name
    assert type(layers[0].weight._local_tensor).__name__ == "ShardedWeight"


def check_meta() -> None:
    """Sharded before there are values."""
    with torch.device("meta"):
        layers = model(torch.bfloat16, gather=True)
    layers = sharded(layers)
    layers.to_empty(device=device())
    with torch.no_grad():
        for p in layers.parameters():
            p.fill_(0.25)
    y = layers(torch.ones(4, SIZES[0], dtype=torch.bfloat16, device=device()))
    expected = torch.tanh(torch.tensor(0.25 * SIZES[0] + 0.25)) * 0.25 * SIZES[1]
    assert type(layers[0].weight._local_tensor).__name__ == "ShardedWeight"
    torch.testing.assert_close(y.float().cpu(), expected.expand(y.shape), rtol=0.05, atol=0.05)


def check_hybrid() -> None:
    """HSDP: replicated over one dimension of the mesh, sharded over the other."""
    world = dist.get_world_size()
    for shape in ((world, 1), (1, world)):
        mesh = dist.device_mesh.init_device_mesh(device(), shape, mesh_dim_names=("r", "s"))
        found = trained(
            sharded(model(torch.bfloat16, gather=True), mesh=mesh), torch.bfloat16, precompute=True
        )
        mesh = dist.device_mesh.init_device_mesh(device(), shape, mesh_dim_names=("r", "s"))
        wanted = trained(sharded(model(torch.bfloat16, gather=False), mesh=mesh), torch.bfloat16)
        assert equal(found, wanted), shape


def check_frozen_and_empty() -> None:
    layers = model(torch.float32, gather=True)
    layers[0].weight.requires_grad_(False)
    layers = sharded(layers)
    layers(values(0, SIZES[0], seed=0)).sum().backward()
    assert layers[0].weight.grad is None
    assert (layers[2].weight.grad.full_tensor() == 0).all()


def check_nan() -> None:
    """A NaN in one rank's rows reaches every result."""
    layers = sharded(model(torch.float32, gather=True))
    if dist.get_rank() == 1:
        with torch.no_grad():
            layers[2].weight._local_tensor.plain[3, 3] = float("nan")
    assert layers(values(20, SIZES[0], seed=0)).isnan().all()


def check_no_such_weights() -> None:
    try:
        precompute_float8_dynamic_scale_for_fsdp(sharded(model(torch.float32, gather=False)))
    except ValueError as error:
        assert "enable_fsdp_float8_all_gather=True" in str(error)
    else:
        raise AssertionError("nothing was said")


@contextmanager
def ordinary_reports(check: str) -> Iterator[None]:
    """Which check failed, and where."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{check} on rank {dist.get_rank()}: {error!r}") from error


FSDP_CHECKS = (
    check_parity,
    check_bytes,
    check_stale_scales,
    check_checkpoint,
    check_meta,
    check_hybrid,
    check_frozen_and_empty,
    check_nan,
    check_no_such_weights,
)


def check_more_ranks() -> None:
    """Of any number; each check takes the size of the group."""
    for check in (check_parity, check_bytes, check_hybrid):
        with ordinary_reports(check.__name__):
            check()
