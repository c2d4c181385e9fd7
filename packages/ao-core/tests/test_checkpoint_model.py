"""Checkpoints and models: what fits is put in, what does not changes nothing."""

import copy
from pathlib import Path

import pytest
import torch
from checkpoint_samples import assert_same, state
from grouped_example import GroupedExample
from torch import Tensor, nn

from ao_core.checkpoint import load, save
from ao_core.errors import CheckpointError
from ao_core.testing.example_format import ExampleTensor


class Net(nn.Module):
    """Tied embeddings, a linear with bias, experts as a bare parameter, a buffer."""

    def __init__(self, *, quantized: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 16)
        self.a = nn.Linear(16, 16)
        self.head = nn.Linear(16, 24, bias=False)
        self.experts = nn.Parameter(torch.randn(2, 8, 16))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.head.weight = self.embed.weight
        if quantized:
            shared = ExampleTensor.from_float(self.embed.weight.detach())
            self.head.weight = self.embed.weight = nn.Parameter(shared, requires_grad=False)
            self.a.weight = nn.Parameter(
                GroupedExample.from_float(self.a.weight.detach()), requires_grad=False
            )
            self.experts = nn.Parameter(
                ExampleTensor.from_float(self.experts.detach()), requires_grad=False
            )


# --- models


@pytest.mark.parametrize("limit", ["5GB", 300])
@pytest.mark.parametrize("kind", ["float", "meta", "quantized"])
def test_into_a_model(tmp_path: Path, kind: str, limit: int | str) -> None:
    source = Net(quantized=True)
    save(source, tmp_path, max_shard_size=limit)
    if kind == "meta":
        with torch.device("meta"):
            model = Net()
    else:
        model = Net(quantized=kind == "quantized")
    cache, trains = model.cache, model.a.bias.requires_grad_(False)
    result = load(tmp_path, model=model)
    assert_same(model.state_dict(), source.state_dict())
    assert set(result) == set(source.state_dict())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert isinstance(model.a.weight, GroupedExample) and isinstance(model.experts, ExampleTensor)
    assert model.head.weight is model.embed.weight
    assert (
        not model.a.weight.requires_grad and not trains.requires_grad and model.a.bias is not trains
    )
    assert model.cache is cache
    x = torch.randn(3, 16)
    assert torch.equal(model.head(model.a.bias + x), source.head(source.a.bias + x))
    assert_same(copy.deepcopy(model).state_dict(), source.state_dict())


def test_plain_parameters_keep_their_gradients_flag(tmp_path: Path) -> None:
    source, model = Net().bfloat16(), Net()
    model.a.bias.requires_grad_(False)
    save(source, path := tmp_path / "x.safetensors")
    load(path, model=model)
    assert model.a.weight.dtype == torch.bfloat16  # as it was saved
    assert model.a.weight.requires_grad and not model.a.bias.requires_grad
    model.head(model.a(model.embed(torch.tensor([1, 2])))).sum().backward()
    assert model.embed.weight.grad is not None and model.embed.weight is model.head.weight


def test_a_name_that_is_missing_follows_its_tie(tmp_path: Path) -> None:
    """Transformers stores tied weights under one name and says nothing of the other."""
    source, model = Net(quantized=True), Net()
    state = {name: t for name, t in source.state_dict().items() if name != "head.weight"}
    save(state, path := tmp_path / "x.safetensors")
    load(path, model=model)
    assert model.head.weight is model.embed.weight and isinstance(model.head.weight, ExampleTensor)


def test_an_untied_checkpoint_unties(tmp_path: Path) -> None:
    model = Net()
    state = dict(model.state_dict()) | {"head.weight": torch.zeros(24, 16)}
    save(state, path := tmp_path / "x.safetensors")
    load(path, model=model)
    assert model.head.weight.sum() == 0 and model.embed.weight.sum() != 0


def test_device_of_the_model_and_of_the_caller(tmp_path: Path) -> None:
    save(Net(quantized=True), path := tmp_path / "x.safetensors")
    load(path, model=(model := Net()), device="meta")
    assert all(p.is_meta for p in model.parameters())


REFUSALS = {
    "missing": (lambda s: s.pop("a.bias"), "the checkpoint lacks a.bias"),
    "unexpected": (lambda s: s.update(other=torch.zeros(1)), "the model lacks other"),
    "shape": (
        lambda s: s.update({"a.bias": torch.zeros(4)}),
        r"a.bias: has shape \[4\], the model's has \[16\]",
    ),
    "quantized shape": (
        lambda s: s.update({"a.weight": ExampleTensor.from_float(torch.zeros(16, 8))}),
        r"a.weight: has shape \[16, 8\], the model's has \[16, 16\]",
    ),
    "kind": (
        lambda s: s.update(steps=torch.tensor(1.0)),
        "steps: has dtype torch.float32, the model's has torch.int64",
    ),
    "codes as weight": (
        lambda s: s.update({"a.weight": torch.zeros(16, 16, dtype=torch.int8)}),
        "a.weight: has dtype torch.int8",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_model_that_does_not_fit_is_left_alone(tmp_path: Path, what: str) -> None:
    change, message = REFUSALS[what]
    state = dict(Net(quantized=True).state_dict())
    change(state)
    save(state, path := tmp_path / "x.safetensors")
    model = Net()
    before = {name: (t, t._version) for name, t in model.state_dict(keep_vars=True).items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load(path, model=model)
    assert str(path) in str(error.value)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is t and t._version == version for name, (t, version) in before.items())
    if what in ("missing", "unexpected"):
        found = load(path, model=model, strict=False)
        assert set(found) == set(before) - ({"a.bias"} if what == "missing" else set())
    else:
        with pytest.raises(CheckpointError, match=message):
            load(path, model=model, strict=False)


# --- what cannot be saved


class Unregistered(ExampleTensor):
    pass


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"a": 1}

    def set_extra_state(self, state: object) -> None:
        pass


Q = ExampleTensor.from_float(torch.ones(2, 8))
BAD_STATES = {
    "meta": ({"a": torch.empty(2, device="meta")}, ValueError, "a is on the meta device"),
    "quantized meta": ({"a": Q.to("meta")}, ValueError, "a_codes is on the meta device"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, TypeError, "a is torch.sparse_coo"),
    "complex": ({"a": torch.zeros(2, dtype=torch.complex64)}, TypeError, "a is torch.complex64"),
    "object": ({"a": 3}, TypeError, "a is a int; a checkpoint holds tensors"),
    "extra state": (Extra(2, 2), TypeError, "_extra_state is a dict"),
    "unregistered": (
        {"a": Unregistered.from_float(torch.ones(2, 8))},
        TypeError,
        "a: Unregistered is not registered; decorate it with @register_tensor",
    ),
    "metadata": (
        {"a": GroupedExample.from_float(torch.ones(2, 8)).rebuild(note=["x"])},
        TypeError,
        "a: note is",
    ),
    "clash": (
        {"a": Q, "a_scale": torch.zeros(1)},
        ValueError,
        "a: stored as a_scale, but another tensor",
    ),
    "clash of aliases": (
        {"b": (w := torch.ones(1)), "a": Q, "a_codes": w},
        ValueError,
        "a_codes: a field of",
    ),
    "empty name": ({"": torch.zeros(1)}, ValueError, "'' cannot be the name"),
    "path": ({"../a": torch.zeros(1)}, ValueError, "'../a' looks like a path"),
    "absolute": ({"/a": torch.zeros(1)}, ValueError, "'/a' looks like a path"),
    "control": ({"a\n": torch.zeros(1)}, ValueError, "cannot be the name"),
    "number": ({1: torch.zeros(1)}, ValueError, "1 cannot be the name"),
    "reserved": ({"__metadata__": torch.zeros(1)}, ValueError, "cannot be the name"),
    "neither": ([torch.zeros(1)], TypeError, "save takes a module or a state dict, got list"),
}


@pytest.mark.parametrize("form", ["x.safetensors", "folder"])
@pytest.mark.parametrize("what", BAD_STATES)
def test_refused_states_change_nothing(tmp_path: Path, what: str, form: str) -> None:
    bad, kind, message = BAD_STATES[what]
    save(state(), tmp_path / form)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(kind, match=message):
        save(bad, tmp_path / form)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", [10**9, 100])
@pytest.mark.parametrize("form", ["x.safetensors", "folder"])
def test_an_error_while_writing_changes_nothing(
    tmp_path: Path, form: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(state(), tmp_path / form, max_shard_size=limit)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    left = [3]

    def write(file: object, t: Tensor) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError("No space left on device")

    monkeypatch.setattr("ao_core.checkpoint_file._write", write)
    with pytest.raises(OSError, match="No space left"):
        save(state(), tmp_path / form, max_shard_size=limit)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_distributed_tensors_are_refused_with_the_way_out(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        t = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (2,)), [Shard(0)])
        with pytest.raises(
            TypeError, match=r"a is a DTensor, .*call \.full_tensor\(\) on it first"
        ):
            save({"a": t}, tmp_path / "x.safetensors")
    finally:
        dist.destroy_process_group()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path: Path) -> None:
    source = Net(quantized=True).cuda()
    save(source, path := tmp_path / "x.safetensors")
    on_cpu = load(path)
    assert_same(on_cpu, {name: t.cpu() for name, t in source.state_dict().items()})
    assert_same(load(path, device="cuda"), dict(source.state_dict()))
    with torch.device("meta"):
        model = Net()
    for target in (Net().cuda(), model):
        device = None if target is not model else "cuda"
        load(path, model=target, device=device)
        assert all(t.is_cuda for t in target.state_dict().values())
        assert target.head.weight is target.embed.weight
        assert_same(dict(target.state_dict()), dict(source.state_dict()))
    save(target, path)
    assert_same(load(path), on_cpu)
