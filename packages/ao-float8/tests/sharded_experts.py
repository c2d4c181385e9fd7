"""What each process of a group checks: FSDP2 shards experts that are trained in float8, and they
train as in one process; so do experts that are spread over ranks."""

from __future__ import annotations

import io

import torch
import torch.distributed as dist
import torch.nn.functional as F
from layers import computed
from parallel_training import same
from sharded_training import device, equal, ordinary_reports, trained_by, values
from torch import Tensor, nn

from ao_core.errors import ConversionError
from ao_float8.experts import (
    Float8Experts,
    convert_experts_to_float8_training,
    float8_grouped_mm,
)

M, D, H = 40, 32, 24


class Experts(nn.Module):
    """As Transformers' fused experts: (E, 2H, D) and, the other way round, (E, H, D)."""

    def __init__(self, E: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * H, D) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(E, H, D) * 0.2)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        gate, up = self.multiply(x, local(self.gate_up_proj).mT, offsets).chunk(2, -1)
        return self.multiply(torch.sigmoid(gate) * up, local(self.down_proj), offsets)

    def multiply(self, x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        assert isinstance(w, Float8Experts)
        return F.grouped_mm(x, w, offs=offsets)


class Called(Experts):
    """The same products, called on ordinary parameters: what Float8Experts must do."""

    def multiply(self, x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        assert not isinstance(w, Float8Experts)
        return float8_grouped_mm(x, w.to(x.dtype).mT, offsets, trained_by("rowwise"))


def local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class Model(nn.Module):
    """Experts behind an ordinary layer, which FSDP2 gathers with them."""

    def __init__(self, E: int, kind: type[Experts] = Experts) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(D, D)
        self.experts = kind(E)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        w = self.router.weight.to(x.dtype)
        return self.experts(F.linear(x, w, self.router.bias.to(x.dtype)), offsets)


def model(
    E: int,
    kind: type[Experts] = Experts,
    dtype: torch.dtype = torch.float32,
    *,
    cache: str = "pass",
) -> Model:
    made = Model(E, kind).to(device(), dtype)
    if kind is Experts:
        config = trained_by("rowwise", weight_cache=cache)
        convert_experts_to_float8_training(made, config=config)
    return made


def sharded(layers: Model, *, mesh: object = None, **options: object) -> Model:
    from torch.distributed.fsdp import fully_shard

    mesh = mesh or dist.device_mesh.init_device_mesh(device(), (dist.get_world_size(),))
    fully_shard(layers.experts, mesh=mesh, **options)
    return fully_shard(layers, mesh=mesh, **options)


def offsets_of(E: int) -> Tensor:
    """Some of no token, and tokens of no expert at the end."""
    ends = torch.linspace(0, M - 3, E + 1)[1:].int()
    if E > 2:
        ends[1] = ends[0]
    return ends.to(device())


def trained(layers: Model, E: int, dtype: torch.dtype, *, seed: int = 0) -> list[Tensor]:
    """Outputs of two steps of two passes each, the gradients of the last, then the weights."""
    optimizer = torch.optim.AdamW(layers.parameters(), lr=0.01)
    found, gradients = [], []
    for step in range(2):
        optimizer.zero_grad()
        for part in range(2):
            if hasattr(layers, "set_requires_gradient_sync"):
                layers.set_requires_gradient_sync(part == 1)
            x = values(M, D, seed=seed + 10 * step + part).to(dtype)
            y = layers(x, offsets_of(E))
            y.float().square().mean().backward()
            found.append(y.detach())
        gradients = [p.grad.clone() for p in layers.parameters()]
        optimizer.step()
    return [*found, *map(whole, gradients), *map(whole, layers.parameters())]


def whole(t: Tensor) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()


def check_experts() -> None:
    """Every bit is that of one process where means of gradients are exact (two ranks), and that of
    products called under FSDP2 where they are not, and where ranks have tokens of their own."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    world, rank = dist.get_world_size(), dist.get_rank()
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for E, policy, reshard in (
        (2 * world + 1, mixed, True),
        (2 * world, None, False),
        (1, mixed, False),  # fewer than ranks
        (world, None, True),
    ):
        dtype = torch.bfloat16 if policy else torch.float32
        options = {"reshard_after_forward": reshard, **({"mp_policy": policy} if policy else {})}
        found = trained(sharded(model(E), **options), E, dtype)
        alone = trained(model(E, Called), E, dtype)
        assert equal(found, alone) if world == 2 else torch.equal(found[0], alone[0]), (E, options)
        own = [
            trained(sharded(model(E, kind), **options), E, dtype, seed=100 * rank)
            for kind in (Experts, Called)
        ]
        assert equal(*own), (E, options)


def check_memory() -> None:
    """Behind forward no rank has all experts, neither as they are nor as codes."""
    layers = sharded(model(5))
    saved: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = layers(values(M, D, seed=0), offsets_of(5))
    layers.reshard()  # FSDP2 keeps the outermost module, which has none of them
    experts = [t for t in saved if t.dim() == 3]
    assert [t.untyped_storage().nbytes() for t in experts] == [0, 0]
    y.sum().backward()


def check_other_ways() -> None:
    """Parameters on the CPU, compiled, recomputed in backward, and DDP."""
    from torch.distributed.fsdp import CPUOffloadPolicy
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.checkpoint import checkpoint

    E = 2 * dist.get_world_size() + 1
    x, offsets = values(M, D, seed=dist.get_rank()).requires_grad_(), offsets_of(E)

    def gradients(layers: nn.Module, *, recompute: bool = False) -> list[Tensor]:
        y = checkpoint(layers, x, offsets, use_reentrant=False) if recompute else layers(x, offsets)
        y.square().sum().backward()
        return [local(p.grad).to(device()) for p in layers.parameters()]

    wanted = gradients(sharded(model(E)))
    assert equal(gradients(sharded(model(E)), recompute=True), wanted)
    offload = CPUOffloadPolicy(pin_memory=device() == "cuda")
    assert equal(gradients(sharded(model(E), offload_policy=offload)), wanted)
    compiled = model(E)
    compiled.experts.compile(backend="aot_eager", fullgraph=True)
    assert equal(gradients(sharded(compiled)), wanted)
    replicated, called = (DistributedDataParallel(model(E, kind)) for kind in (Experts, Called))
    assert equal(gradients(replicated), gradients(called))


def check_dimension_and_hybrid() -> None:
    """Sharded by features, and replicated over one dimension of a mesh."""
    from torch.distributed.tensor import Shard

    world, rank = dist.get_world_size(), dist.get_rank()

    def second(parameter: Tensor) -> Shard | None:
        return Shard(1) if parameter.dim() == 3 and parameter.shape[1] % world == 0 else None

    def trained_on(kind: type[Experts], **options: object) -> list[Tensor]:
        return trained(sharded(model(3, kind), **options), 3, torch.float32, seed=100 * rank)

    by_features = {"shard_placement_fn": second}
    assert equal(trained_on(Experts, **by_features), trained_on(Called, **by_features))
    for shape in ((world, 1), (1, world)):
        meshes = [
            dist.device_mesh.init_device_mesh(device(), shape, mesh_dim_names=("r", "s"))
            for _ in range(2)
        ]
        found, wanted = (
            trained_on(kind, mesh=mesh)
            for kind, mesh in zip((Experts, Called), meshes, strict=True)
        )
        assert equal(found, wanted), shape


def check_checkpoint_of_experts() -> None:
    """State dicts hold ordinary tensors of the same memory, and load in both ways."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.tensor import DTensor

    E = 2 * dist.get_world_size() + 1
    layers = sharded(model(E))
    state = layers.state_dict()
    for name, value in state.items():
        assert type(value) is DTensor and type(value._local_tensor) is Tensor, name
    held = layers.experts.down_proj._local_tensor
    assert isinstance(held, Float8Experts)
    assert state["experts.down_proj"]._local_tensor.data_ptr() == held.plain.data_ptr()
    full = get_model_state_dict(layers, options=StateDictOptions(full_state_dict=True))
    buffer = io.BytesIO()
    torch.save(full, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    Model(E, Called).load_state_dict(loaded)
    doubled = {name: 2 * value for name, value in full.items()}
    set_model_state_dict(layers, dict(doubled), options=StateDictOptions(full_state_dict=True))
    twice = model(E, Called)
    twice.load_state_dict(doubled)
    x = values(M, D, seed=1)
    assert torch.equal(layers(x, offsets_of(E)), twice(x, offsets_of(E)))
    layers.load_state_dict({name: 1 * v for name, v in state.items()}, assign=True)
    assert isinstance(layers.experts.down_proj._local_tensor, Float8Experts)
    assert torch.equal(layers(x, offsets_of(E)), twice(x, offsets_of(E)))
    layers(x, offsets_of(E)).sum().backward()
    assert layers.experts.down_proj.grad.full_tensor().any()


def check_meta_frozen_and_empty() -> None:
    """Sharded before there are values; no gradient where none is wanted; a rank without tokens."""
    with torch.device("meta"):
        layers = Model(3)
    convert_experts_to_float8_training(layers, config=trained_by("rowwise"))
    layers.experts.gate_up_proj.requires_grad_(False)
    layers = sharded(layers).to_empty(device=device())
    with torch.no_grad():
        for p in layers.parameters():
            p.fill_(0.25)
    called = model(3, Called)
    with torch.no_grad():
        for p in called.parameters():
            p.fill_(0.25)
    x = values(M, D, seed=0)[: 0 if dist.get_rank() == 1 else M]
    offsets = offsets_of(3).clamp(max=len(x))
    y = layers(x, offsets)
    assert torch.equal(y, called(x, offsets))
    y.sum().backward()
    assert layers.experts.gate_up_proj.grad is None
    assert layers.experts.down_proj.grad.full_tensor().any()


def check_expert_parallel() -> None:
    """Each rank has some of the experts, alone and inside of FSDP2; converted before that only."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    world, rank = dist.get_world_size(), dist.get_rank()
    E = 2 * world
    mesh = dist.device_mesh.init_device_mesh(device(), (1, world), mesh_dim_names=("dp", "ep"))
    for inside in (False, True):
        alone, spread = model(E, Called).experts, model(E).experts
        for name, p in list(spread.named_parameters()):
            setattr(spread, name, nn.Parameter(distribute_tensor(p, mesh["ep"], [Shard(0)])))
        try:
            convert_experts_to_float8_training(spread, config=trained_by("rowwise"))
        except ConversionError as error:
            assert "is trained in float8 already" in str(error)
        else:
            raise AssertionError("nothing was said")
        if inside:
            fully_shard(spread, mesh=mesh["dp"])
        offsets, x = offsets_of(E), values(M, D, seed=0)
        wanted = alone(x, offsets)
        wanted.square().sum().backward()
        ends = [0, *offsets.tolist()]
        first, last = ends[2 * rank], ends[2 * rank + 2]
        y = spread(x[first:last], offsets[2 * rank : 2 * rank + 2] - first)
        y.square().sum().backward()
        assert same(y, wanted[first:last])
        for one, other in zip(spread.parameters(), alone.parameters(), strict=True):
            assert same(one.grad.full_tensor(), other.grad), inside
        torch.optim.AdamW(spread.parameters()).step()
        assert all(isinstance(local(p), Float8Experts) for p in spread.parameters())


class Part(nn.Module):
    """The experts of this rank, with their tokens."""

    def __init__(self, experts: Experts, E: int) -> None:
        super().__init__()
        self.experts, self.n = experts, E // dist.get_world_size()

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        start = self.n * dist.get_rank()
        first, *ends = [0, *offsets.tolist()][start : start + self.n + 1]
        own = torch.tensor(ends, dtype=torch.int32, device=x.device) - first
        return self.experts(x[first : ends[-1]], own)


def spread(layers: Model, E: int) -> Part:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = dist.device_mesh.init_device_mesh(device(), (dist.get_world_size(),))
    for name, p in list(layers.experts.named_parameters()):
        setattr(layers.experts, name, nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])))
    return Part(layers.experts, E)


def check_kept_codes() -> None:
    """With weight_cache="step" a second pass casts no weight that is a rank's own, under DDP and
    expert parallel; what FSDP2 gathers keeps no codes. Bits are as without."""
    from torch.nn.parallel import DistributedDataParallel

    E = 2 * dist.get_world_size()
    for wrap, n_casts in (
        (lambda layers: DistributedDataParallel(layers), 2 * 2),
        (lambda layers: spread(layers, E), 2 * 2),
        (sharded, 2 * 2 * 2 * 2),  # forward and backward of each pass
    ):
        wanted = trained(wrap(model(E)), E, torch.float32)
        layers = wrap(model(E, cache="step"))
        with computed() as shapes:
            found = trained(layers, E, torch.float32)
        assert equal(found, wanted)
        assert sum(len(shape) == 3 for shape in shapes) == n_casts
        if wrap is sharded:
            assert not any(local(p).codes.nbytes for p in layers.experts.parameters())


def check_order() -> None:
    """Experts become float8 before they are sharded."""
    layers = sharded(Model(3, Experts).to(device()))
    try:
        convert_experts_to_float8_training(layers, config=trained_by("rowwise"))
    except ConversionError as error:
        assert "convert experts before fully_shard" in str(error)
    else:
        raise AssertionError("nothing was said")


EXPERT_CHECKS = (
    check_experts,
    check_memory,
    check_other_ways,
    check_dimension_and_hybrid,
    check_checkpoint_of_experts,
    check_meta_frozen_and_empty,
    check_expert_parallel,
    check_kept_codes,
    check_order,
)


def check_sharded_experts() -> None:
    for check in EXPERT_CHECKS:
        with ordinary_reports(check.__name__):
            check()
