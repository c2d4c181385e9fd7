"""What each of two processes checks: DTensor and FSDP2 parameters step as whole ones do."""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.distributed as dist
from steps import values
from torch import Tensor, nn

from ao_optim import (
    AdamW,
    AdamW4bit,
    AdamW8bit,
    AdamWFp8,
    CPUOffloadOptimizer,
    Muon,
    StateOffloadOptimizer,
)
from ao_optim.offload import version_of

KINDS = (AdamW8bit, AdamW4bit, AdamWFp8, AdamW, Muon)


def check_on_gpus() -> None:
    """What copies and streams could spoil."""
    for kind in KINDS:
        check_even(kind, torch.bfloat16, device="cuda")
    check_fsdp(device="cuda")
    check_offload(device="cuda")


def check_steps() -> None:
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16):
            check_even(kind, dtype)
        check_uneven(kind)
    check_small()
    check_full_state()
    check_fsdp()
    check_offload()
    check_replicated()


def sharded(x: Tensor, dim: int = 0) -> nn.Parameter:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.device_mesh.init_device_mesh(x.device.type, (2,))
    return nn.Parameter(distribute_tensor(x, mesh, [Shard(dim)]))


def stepped(kind: type, p: nn.Parameter, steps: int = 3) -> torch.optim.Optimizer:
    from torch.distributed.tensor import distribute_tensor

    optimizer = kind([p], lr=0.01, bf16_stochastic_round=True, seed=3)
    for step in range(steps):
        g = values(*p.shape, seed=step + 1).to(p.device, p.dtype)
        if hasattr(p, "device_mesh"):
            g = distribute_tensor(g, p.device_mesh, p.placements)
        p.grad = g
        optimizer.step()
    return optimizer


def check_even(kind: type, dtype: torch.dtype, *, device: str = "cpu") -> None:
    """Blocks end where shards do: every bit is that of one process, random rounding included."""
    x = values(64, 128).to(device, dtype)
    whole, part = nn.Parameter(x.clone()), sharded(x)
    one, two = stepped(kind, whole), stepped(kind, part)
    assert torch.equal(part.full_tensor(), whole), (kind, dtype)
    assert part.to_local().shape == (32, 128)
    for name, tensor in two.state[part].items():
        if name not in ("step", "shape"):
            expected = one.state[whole][name].chunk(2)[dist.get_rank()]
            assert torch.equal(tensor.view(torch.uint8), expected.view(torch.uint8)), name


def check_uneven(kind: type) -> None:
    """65 rows, and 129 columns: blocks differ, so results do, by what quantization costs."""
    for dim, shape in ((0, (65, 100)), (1, (50, 129))):
        whole, part = nn.Parameter(values(*shape)), sharded(values(*shape), dim)
        stepped(kind, whole)
        optimizer = stepped(kind, part)
        n = part.to_local().numel()
        assert n != part.numel() // 2 and optimizer.state[part]["step"] == 3
        difference = (part.full_tensor() - whole).norm() / (whole - values(*shape)).norm()
        limit = {AdamW8bit: 0.02, AdamW4bit: 0.3, AdamWFp8: 0.06, AdamW: 1e-6, Muon: 0.02}[kind]
        assert difference < limit, (kind, dim, difference)
        again = kind([part], bf16_stochastic_round=True)
        again.load_state_dict(optimizer.state_dict())
        for name, tensor in optimizer.state[part].items():
            loaded = again.state[part][name]
            assert torch.equal(
                loaded.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            )


def check_small() -> None:
    """What is small is decided on the whole: 4096 elements are quantized, in halves of 2048 too."""
    large, small = sharded(values(4096)), sharded(values(4095))
    assert "exp_avg_codes" in stepped(AdamW8bit, large).state[large]
    assert "exp_avg" in stepped(AdamW8bit, small).state[small]


def check_full_state() -> None:
    """Full precision state is a DTensor, and loads into other layouts, and from whole tensors."""
    whole, part = nn.Parameter(values(64, 128)), sharded(values(64, 128))
    one, two = stepped(AdamW8bit, whole), stepped(AdamW8bit, part)
    theirs, ours = one.full_state_dict(), two.full_state_dict()
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(ours["state"][0][name].full_tensor(), theirs["state"][0][name])
    columns = sharded(part.full_tensor().detach(), dim=1)
    other, same = AdamW([columns]), AdamW8bit([part])
    other.load_full_state_dict(ours)
    local = other.state[columns]["exp_avg"]
    assert torch.equal(local, theirs["state"][0]["exp_avg"].chunk(2, 1)[dist.get_rank()])
    same.load_full_state_dict(theirs)
    assert torch.equal(same.state[part]["exp_avg_codes"], two.state[part]["exp_avg_codes"])


def check_fsdp(*, device: str = "cpu") -> None:
    """A model under FSDP2 with clipping, beside the model of one process."""
    from torch.distributed.fsdp import fully_shard

    models = []
    for shard in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 128)).to(device)
        if shard:
            fully_shard(model[0])
            fully_shard(model)
        optimizer = AdamW8bit(model.parameters(), lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            model(values(8, 128, seed=step).to(device)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        models.append(model)
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs.detach(), rtol=1e-3, atol=1e-3)


def check_replicated() -> None:
    """Hooks come before DistributedDataParallel's average, which is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CPUOffloadOptimizer([nn.Parameter(values(4, 4))], AdamW8bit, offload_gradients=True)
    assert any("DistributedDataParallel" in str(each.message) for each in caught)


def check_offload(*, device: str = "cpu") -> None:
    """Under FSDP2 the same as without offloading: gradients that its hooks bring, two backward
    passes a step, clipping by the norm over all ranks."""
    from torch.distributed.fsdp import fully_shard

    makers = {
        "plain": partial(AdamW8bit, lr=0.01),
        "gradients stay": partial(CPUOffloadOptimizer, optimizer_class=AdamW8bit, lr=0.01),
        "gradients go": partial(
            CPUOffloadOptimizer, optimizer_class=AdamW8bit, lr=0.01, offload_gradients=True
        ),
        "state": partial(StateOffloadOptimizer, optimizer_class=AdamW8bit, lr=0.01),
    }
    found = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 65), nn.ReLU(), nn.Linear(65, 128)).to(device)
        fully_shard(model[0])
        fully_shard(model)
        optimizer = make(model.parameters())
        for step in range(3):
            for part in range(2):
                x = values(8, 128, seed=10 * step + part).to(device)
                model(x).square().mean().backward()
            if name == "gradients go":
                assert all(p.grad is None for p in model.parameters())
                norm = optimizer.clip_grad_norm_(1e-3)
            else:
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            optimizer.step()
            optimizer.zero_grad()
        found[name] = [norm.to(device), *(p.full_tensor() for p in model.parameters())]
        assert norm > 1e-3
        if isinstance(optimizer, CPUOffloadOptimizer):  # parts are not read anew in each step
            lanes = optimizer._lanes.values()
            assert all(lane.version == version_of(lane.parameter) for lane in lanes)
    for name, tensors in found.items():
        for a, b in zip(tensors, found["plain"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
