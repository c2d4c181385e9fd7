"""What processes do that save with torch.distributed.checkpoint and load in another number."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from steps import values
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ao_optim import AdamW4bit, AdamW8bit, AdamWFp8, CPUOffloadOptimizer, Muon

OPTIONS: dict[str, Any] = {"lr": 0.01, "bf16_stochastic_round": True, "seed": 3}
KINDS: dict[str, Any] = {
    "4bit": partial(AdamW4bit, amsgrad=True, **OPTIONS),
    "fp8": partial(AdamWFp8, **OPTIONS),
    "offload": partial(CPUOffloadOptimizer, optimizer_class=AdamW8bit, **OPTIONS),
    "muon": partial(Muon, **OPTIONS),
}
# Rows of whole blocks, also behind the second dimension; rows that are not; one dimension; small
ROWS = {"matrix": (65, 256), "experts": (5, 16, 256), "filters": (65, 64, 2, 2)}
SHAPES = {**ROWS, "odd": (65, 100), "vector": (4200,), "small": (10, 10)}


class Weights(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            x = values(*shape, seed=seed).bfloat16()
            self.register_parameter(name, nn.Parameter(x))
        self.wide = nn.Parameter(values(64, 128, seed=seed))  # with float32 state
        self.frozen = nn.Parameter(values(8, 8), requires_grad=False)


def built(kind: Any, *, seed: int, shard: bool) -> tuple[Weights, torch.optim.Optimizer]:
    model = Weights(seed)
    if shard:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    if kind is KINDS["muon"]:
        for name, p in list(named.items()):
            if name not in ROWS and name != "wide":
                p.requires_grad_(False)
                del named[name]
    wide = named.pop("wide")
    return model, kind([{"params": list(named.values())}, {"params": [wide], "state_bits": 32}])


def advanced(model: Weights, optimizer: torch.optim.Optimizer, *, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        for place, p in enumerate(model.parameters()):
            if not p.requires_grad:
                continue
            g = values(*p.shape, seed=100 * step + place).to(p.dtype)
            if hasattr(p, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                g = distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None)
            p.grad = g
        optimizer.step()
        optimizer.zero_grad()


def whole(x: Any) -> Any:
    return x.full_tensor() if hasattr(x, "device_mesh") else x


def everything(model: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and state as whole tensors."""
    found = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    state = get_optimizer_state_dict(model, optimizer)["state"]
    for name, record in state.items():
        for key, x in record.items():
            found[f"{name}.{key}"] = whole(x).clone()
    return found


def save(model: Weights, optimizer: torch.optim.Optimizer, path: Path) -> None:
    state = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=path)


def load(model: Weights, optimizer: torch.optim.Optimizer, path: Path) -> None:
    state = {"model": model.state_dict(), "optim": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=path)
    model.load_state_dict(state["model"])
    set_optimizer_state_dict(model, optimizer, state["optim"])


def start(folder: Path, kinds: tuple[str, ...]) -> None:
    """Three steps, saved; then what two more make of them, going on and after loading."""
    refuse()
    for name in kinds:
        kind = KINDS[name]
        model, optimizer = built(kind, seed=0, shard=True)
        advanced(model, optimizer, first=0, steps=3)
        save(model, optimizer, folder / name)
        keep(everything(model, optimizer), folder / f"{name}-3.pt")
        again, resumed = built(kind, seed=1, shard=True)
        load(again, resumed, folder / name)
        for each in ((model, optimizer), (again, resumed)):
            advanced(*each, first=3, steps=2)
        same(everything(again, resumed), everything(model, optimizer), exactly="")
        keep(everything(model, optimizer), folder / f"{name}-5.pt")


def keep(tensors: dict[str, Tensor], path: Path) -> None:
    if dist.get_rank() == 0:
        torch.save(tensors, path)


def go_on(folder: Path, kinds: tuple[str, ...], *, shard: bool = True) -> None:
    """In another number of processes: what was saved, and after two steps."""
    for name in kinds:
        kind = KINDS[name]
        model, optimizer = built(kind, seed=2, shard=shard)
        load(model, optimizer, folder / name)
        same(everything(model, optimizer), torch.load(folder / f"{name}-3.pt"), exactly="rows")
        advanced(model, optimizer, first=3, steps=2)
        same(everything(model, optimizer), torch.load(folder / f"{name}-5.pt"), exactly="rows")


def same(found: dict[str, Tensor], expected: dict[str, Tensor], *, exactly: str) -> None:
    """Bit for bit what has rows of whole blocks or full precision, or, with "", everything; the
    rest up to what quantizing in other blocks costs."""
    assert list(found) == list(expected)
    for name, x in found.items():
        y = expected[name]
        assert x.dtype == y.dtype and x.shape == y.shape, name
        parameter = name.split(".")[0]
        if not exactly or parameter not in ("odd", "vector") or "exp_avg" not in name:
            if exactly and parameter in ("odd", "vector") and name == parameter:
                assert (x.float() - y.float()).abs().max() < 0.04, name
                continue
            assert torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)), (
                name
            )
        else:
            assert (x - y).norm() < 0.3 * y.norm(), name


def refuse() -> None:
    """Another format, and codes of another parameter: errors that change nothing."""
    model, optimizer = built(KINDS["offload"], seed=0, shard=True)
    advanced(model, optimizer, first=0, steps=1)
    other_model, other = built(KINDS["4bit"], seed=0, shard=True)
    advanced(other_model, other, first=0, steps=1)
    before = everything(model, optimizer)
    state = get_optimizer_state_dict(model, optimizer)
    broken = {**state, "state": {**state["state"]}}
    broken["state"]["matrix"] = broken["state"]["filters"]
    for bad, words in (
        (get_optimizer_state_dict(other_model, other), "holds the state of AdamW4bit"),
        (broken, "is that of a parameter of shape (65, 64, 2, 2)"),
    ):
        try:
            set_optimizer_state_dict(model, optimizer, bad)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
        same(everything(model, optimizer), before, exactly="")
