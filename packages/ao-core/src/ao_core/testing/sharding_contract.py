"""Sharding checks that every quantized tensor must pass, in two processes: gloo on the loopback, or
NCCL with two GPUs.

    def test_sharding():
        run_two_processes(check_formats, {"int8": make_int8, ...})

    @pytest.mark.gpu
    def test_sharding_on_gpus():
        run_two_processes(check_formats, {"int8": make_int8, ...}, device="cuda")

`make` functions must be picklable (module-level functions or functools.partial): the processes are
spawned.
"""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ao_core.tensor import QTensor

__all__ = ["check_formats", "run_processes", "run_two_processes"]

WORLD = 2
Make = Callable[[Tensor], QTensor]


def run_two_processes(fn: Callable[..., None], *args: Any, device: str = "cpu") -> None:
    """Call `fn(*args)` in two processes that form a group, of gloo for "cpu" and of NCCL for
    "cuda", where each has a GPU; an exception in either is raised here."""
    run_processes(WORLD, fn, *args, device=device)


def run_processes(world: int, fn: Callable[..., None], *args: Any, device: str = "cpu") -> None:
    """The same in `world` processes."""
    # A file to meet at: no port that another may take.
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        arguments = (world, store, device, fn, args)
        torch.multiprocessing.spawn(_worker, args=arguments, nprocs=world)


def _worker(
    rank: int,
    world: int,
    store: str,
    device: str,
    fn: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    faulthandler.enable()  # a crash in a library says where
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = {"cpu": "gloo", "cuda": "nccl"}[device]
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world)
    fn(*args)
    dist.barrier()  # a rank that leaves early cuts the connections of the other
    sys.stdout.flush()
    # torch 2.13 now and then aborts while it takes gloo's threads down ("terminate called without
    # an active exception"); what was to be shown has been shown
    os._exit(0)


def check_formats(makers: dict[str, Make]) -> None:
    """Column and row sharding, gathering and FSDP2 for each format."""
    for name, make in makers.items():
        for check in CHECKS:
            try:
                check(make)
            except Exception as error:
                raise AssertionError(
                    f"{check.__name__} of {name} on rank {dist.get_rank()}: {error}"
                ) from error


def _values(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _weight(make: Make, *shape: int, seed: int = 0) -> QTensor:
    """Quantized on the CPU, on this rank's device."""
    q: QTensor = make(_values(*shape, seed=seed)).to(_device())
    return q


def _tokens(*shape: int, seed: int = 1) -> Tensor:
    return _values(*shape, seed=seed).to(_device())


def _same(got: Tensor, wanted: Tensor) -> bool:
    """Equal bits on a CPU; on a GPU kernels add up in an order that depends on the size of a shard,
    and the matrix units keep 14 bits of a float8 sum."""
    if _device() == "cpu":
        return torch.equal(got, wanted)
    return bool((got - wanted).norm() <= 2e-3 * wanted.norm())


def _check_equal(got: Tensor, wanted: Tensor) -> None:
    off = (got - wanted).norm() / wanted.norm()
    assert torch.equal(got, wanted), f"results differ by {off:.2e} of their norm"


def _mesh() -> Any:
    return dist.device_mesh.init_device_mesh(_device(), (WORLD,))


def check_columns(make: Make) -> None:
    """Output features split over the ranks: on a CPU bit-equal to the whole."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    q, x = _weight(make, 32, 128), _tokens(5, 128)
    sharded = distribute_tensor(q, _mesh(), [Shard(0)])
    assert isinstance(sharded, DTensor) and sharded.to_local().shape == (16, 128)
    y = F.linear(DTensor.from_local(x, sharded.device_mesh, [Replicate()]), sharded)
    assert y.placements[0].is_shard(1) and _same(y.full_tensor(), F.linear(x, q))


def check_rows(make: Make) -> None:
    """Input features split over the ranks: partial sums, equal to the whole up to the order of a
    sum and, where activations are quantized on every call, up to each rank's own activation
    scale."""
    from torch.distributed.tensor import Shard, distribute_tensor

    q, x = _weight(make, 32, 128), _tokens(5, 128)
    sharded = distribute_tensor(q, _mesh(), [Shard(1)])
    assert sharded.to_local().shape == (32, 64)
    y = F.linear(distribute_tensor(x, _mesh(), [Shard(1)]), sharded).full_tensor()
    exact = F.linear(x, q)
    assert (y - exact).norm() <= _row_limit(q) * exact.norm()


def _row_limit(q: QTensor) -> float:
    """The error that a product may have when each rank has a part of the input features."""
    activation = getattr(q, "activation", None)
    if activation is None or activation.endswith("_static"):
        return 1e-6 if _device() == "cpu" else 2e-3
    return {"int8": 2e-2, "float8": 5e-2}[activation.partition("_")[0]]


def check_gather(make: Make) -> None:
    """Shards come together again, bit for bit; often, because work that nobody waits for shows up
    only now and then."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    q = _weight(make, 32, 128)
    for placement in (Shard(0), Shard(1), Replicate()) * 8:
        whole = distribute_tensor(q, _mesh(), [placement]).full_tensor()
        assert type(whole) is type(q) and torch.equal(whole, q), placement


def check_fsdp(make: Make) -> None:
    """FSDP2: each rank holds half of the codes, forward gathers them, training of the rest works,
    values are those of one process. Groups need not divide the input features."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 16))
    model[0].weight = nn.Parameter(make(model[0].weight.detach()), requires_grad=False)
    model.to(_device())
    x = _tokens(5, 100)
    expected = model(x)
    expected.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    fully_shard(model[0])
    fully_shard(model)
    for _ in range(2):
        model.zero_grad()
        y = model(x)
        assert torch.equal(y, expected)
        y.sum().backward()
    local = model[0].weight.to_local()
    assert (
        isinstance(local, QTensor)
        and local.shape == (16, 100)
        and local.nbytes < 0.6 * _weight(make, 32, 100).nbytes
    )
    got = [p.grad.full_tensor() for p in model.parameters() if p.grad is not None]
    assert len(got) == 3
    for ours, theirs in zip(got, grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def check_uneven(make: Make) -> None:
    """Sizes that two ranks do not divide: the last rank has less, and nothing else changes. Where
    that would cut a block, it is refused."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    for dim, shape in ((0, (33, 128)), (1, (32, 51))):
        q, x = _weight(make, *shape), _tokens(5, shape[1])
        whole = F.linear(x, q)
        try:
            sizes = [part.shape[dim] for part in q.chunk(WORLD, dim)]
        except NotImplementedError as error:
            assert "multiples of" in str(error)
            continue
        sharded = distribute_tensor(q, _mesh(), [Shard(dim)])
        assert sharded.to_local().shape[dim] == sizes[dist.get_rank()]
        if dim == 0:
            y = F.linear(DTensor.from_local(x, sharded.device_mesh, [Replicate()]), sharded)
            assert _same(y.full_tensor(), whole)
            assert torch.equal(sharded.full_tensor(), q)
        else:
            y = F.linear(distribute_tensor(x, _mesh(), [Shard(1)]), sharded)
            assert (y.full_tensor() - whole).norm() <= _row_limit(q) * whole.norm()


def check_uneven_fsdp(make: Make) -> None:
    """FSDP2 with output features that two ranks do not divide: the values of one process, at the
    first gather and at later ones, and after new weights were put into the shards. Where a rank
    would get a part of a block, it is refused."""
    from torch.distributed.fsdp import fully_shard

    for n in (33, 1):
        weights = [_weight(make, n, 128, seed=seed) for seed in range(2)]
        model, x = nn.Linear(128, n, bias=False), _tokens(5, 128, seed=2)
        model.weight = nn.Parameter(weights[0], requires_grad=False)
        try:
            fully_shard(model)
        except NotImplementedError as error:
            assert "multiples of" in str(error)
            continue
        for _ in range(2):
            _check_equal(model(x), F.linear(x, weights[0]))
        model.reshard()
        shard = model.weight.to_local()
        assert shard.shape[0] == (n - n // 2, n // 2)[dist.get_rank()]
        if n > 1:
            shard.copy_(weights[1].chunk(WORLD)[dist.get_rank()])
            _check_equal(model(x), F.linear(x, weights[1]))


def check_misaligned(make: Make) -> None:
    """A split inside a block is refused with the coordinates that would work."""
    q = _weight(make, 8, 136)
    rules = [dims[-1] for dims in q.field_layout().values()]
    block = max(r[0] if isinstance(r, tuple) else r for r in rules if r is not None)
    if 1 < block < 136 and 68 % block:
        try:
            q.chunk(2, dim=1)
        except NotImplementedError as error:
            assert "multiples of" in str(error)
        else:
            raise AssertionError("a block was split")


CHECKS = (
    check_columns,
    check_rows,
    check_gather,
    check_uneven,
    check_fsdp,
    check_uneven_fsdp,
    check_misaligned,
)
