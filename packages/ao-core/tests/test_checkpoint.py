"""Checkpoints: what is saved comes back bit for bit, from files, folders, shards, into models."""

import copy
import io
import json
import stat
import threading
from pathlib import Path

import pytest
import torch
from grouped_example import GroupedExample
from safetensors import safe_open
from torch import Tensor, nn

from ao_core.checkpoint import (
    decode_header,
    encode_header,
    find_tied,
    flatten,
    load,
    load_config,
    read_header,
    save,
    unflatten,
)
from ao_core.errors import CheckpointError, ConfigError
from ao_core.tensor import QTensor
from ao_core.testing.example_format import ExampleConfig, ExampleTensor

INDEX = "model.safetensors.index.json"


def weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def state() -> dict[str, Tensor]:
    """One of everything: formats, an absent optional field, experts, plain tensors."""
    return {
        "embed.weight": ExampleTensor.from_float(weight(24, 16)),
        "a.weight": GroupedExample.from_float(weight(6, 40, seed=1, dtype=torch.bfloat16)),
        "a.bias": weight(6, seed=2),
        "b.weight": GroupedExample.from_float(weight(5, 17, seed=3), bits=3, mapping="symmetric"),
        "experts": ExampleTensor.from_float(weight(2, 8, 16, seed=4)),
        "steps": torch.tensor(7),
    }


def same(a: Tensor, b: Tensor) -> bool:
    """One format, dtype, shape, metadata and bits."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        ours, theirs = a.tensors(), b.tensors()
        equal = a.metadata() == b.metadata() and set(ours) == set(theirs)
        return equal and all(same(t, theirs[name]) for name, t in ours.items())
    if a.numel() == 0:
        return True
    return torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        got, t = (
            x.data if isinstance(x, nn.Parameter) and not isinstance(x, QTensor) else x
            for x in (found[name], t)
        )
        assert same(got, t), name


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


# --- building blocks


def test_flatten_names_fields_after_the_tensor() -> None:
    q = GroupedExample.from_float(weight(6, 40))
    plain, entries = flatten({"m.weight": q, "m.bias": (bias := torch.zeros(6))})
    assert list(plain) == ["m.weight_codes", "m.weight_scale", "m.weight_zero", "m.bias"]
    assert plain["m.weight_codes"].data_ptr() == q.codes.data_ptr()
    assert plain["m.bias"].data_ptr() == bias.data_ptr()
    assert entries == {
        "m.weight": {
            "class": "GroupedExample",
            "shape": [6, 40],
            "dtype": "float32",
            "fields": {
                "codes": {"dtype": "uint8", "shape": [6, 20]},
                "scale": {"dtype": "bfloat16", "shape": [6, 3]},
                "zero": {"dtype": "bfloat16", "shape": [6, 3]},
            },
            "meta": {"transposed": False, "group_size": 16, "bits": 4, "note": None, "share": 0.5},
        }
    }


def test_unflatten_is_the_inverse_through_the_header() -> None:
    plain, entries = flatten(state())
    header = decode_header(encode_header(entries))
    assert header.tensors == entries
    assert_same(unflatten(plain, header.tensors), state())


def test_unflatten_refuses_what_does_not_agree() -> None:
    plain, entries = flatten({"w": GroupedExample.from_float(weight(6, 40))})
    with pytest.raises(CheckpointError, match="w: its zero is missing: there is no w_zero"):
        unflatten({name: t for name, t in plain.items() if name != "w_zero"}, entries)
    with pytest.raises(
        CheckpointError, match=r"w_scale is bfloat16 \[6, 3\], but it is bfloat16 \[6, 2\]"
    ):
        unflatten(plain | {"w_scale": plain["w_scale"][:, :2]}, entries)


def test_header_keeps_config_and_strings() -> None:
    header = decode_header(
        encode_header({}, config=ExampleConfig(refuse=(3,)), metadata={"who": "me"})
    )
    assert header.config == {"type": "ExampleConfig", "refuse": [3], "fail": []}
    assert header.metadata == {"who": "me", "format": "pt"}
    assert header.version == "1"
    with pytest.raises(ValueError, match="cannot begin with 'ao_'"):
        encode_header({}, metadata={"ao_tensors": "{}"})
    with pytest.raises(TypeError, match="strings to strings"):
        encode_header({}, metadata={"n": 1})  # type: ignore[dict-item]


def test_find_tied() -> None:
    w, q = torch.randn(4, 8), ExampleTensor.from_float(torch.randn(4, 8))
    assert find_tied({"a": w, "b": w.detach(), "c": w[:2], "d": w.clone()}) == {"a": ["b"]}
    assert find_tied({"a": q, "b": q.detach(), "c": q.clone(), "d": q.t()}) == {"a": ["b"]}
    assert find_tied({"a": torch.empty(0), "b": torch.empty(0)}) == {}
    assert find_tied({"a": torch.zeros(1).expand(3), "b": w}) == {}


# --- one file


def test_file_round_trip(tmp_path: Path) -> None:
    save(state(), path := tmp_path / "x.safetensors")
    assert_same(load(path), state())
    assert files(tmp_path) == {"x.safetensors"}


def test_a_file_is_what_safetensors_expects(tmp_path: Path) -> None:
    save(state(), path := tmp_path / "x.safetensors")
    plain, entries = flatten(state())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == sorted(plain)
        assert all(same(file.get_tensor(name), t) for name, t in plain.items())
    assert set(metadata) == {"format", "ao_format_version", "ao_tensors"}
    assert metadata["format"] == "pt" and metadata["ao_format_version"] == "1"
    assert json.loads(metadata["ao_tensors"]) == entries
    assert not any(name.endswith(".weight") for name in plain)


def test_data_begin_on_cache_lines(tmp_path: Path) -> None:
    save(
        {"odd": torch.zeros(3), "b": torch.zeros(64), "c": torch.zeros(32)},
        path := tmp_path / "x.safetensors",
    )
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(raw[8 : 8 + length])
    assert {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"} == {
        "b": [0, 256],
        "c": [256, 384],
        "odd": [384, 396],
    }


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    ],
)
def test_every_dtype_rank_and_stride(tmp_path: Path, dtype: torch.dtype) -> None:
    values = (torch.arange(24) - 12).to(torch.float32).to(dtype).reshape(2, 3, 4)
    shapes = {
        "whole": values,
        "scalar": values[0, 0, 0],
        "empty": values[:, :0],
        "transposed": values.mT,
        "step": values[..., ::2],
        "expanded": values[:1].expand(2, 3, 4),
    }
    save(shapes, path := tmp_path / "x.safetensors")
    assert_same(load(path), shapes)


def test_views_of_quantized_tensors(tmp_path: Path) -> None:
    q = GroupedExample.from_float(weight(6, 40))
    views = {"t": q.t(), "rows": q[2:5], "columns": q[:, 16:40], "all": q}
    save(views, path := tmp_path / "x.safetensors")
    assert_same(load(path), views)
    found = load(path)["t"]
    assert isinstance(found, GroupedExample) and torch.equal(found.dequantize(), q.dequantize().t())


def test_saving_is_deterministic(tmp_path: Path) -> None:
    save(state(), tmp_path / "a.safetensors", config=ExampleConfig(), metadata={"z": "1", "a": "2"})
    save(state(), tmp_path / "b.safetensors", config=ExampleConfig(), metadata={"a": "2", "z": "1"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_loaded_tensors_are_private_and_own_their_bytes_only(tmp_path: Path) -> None:
    save({"a": torch.zeros(1000), "b": torch.ones(10)}, path := tmp_path / "x.safetensors")
    before = path.read_bytes()
    found = load(path)
    found["a"] += 1
    assert path.read_bytes() == before and load(path)["a"].sum() == 0
    torch.save({"b": found["b"]}, buffer := io.BytesIO())
    assert buffer.tell() < 4000  # not the whole file
    save({"a": found["a"]}, path)  # over the file that is mapped
    assert found["b"].sum() == 10 and load(path)["a"].sum() == 1000


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    save({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y").touch()
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "y").stat().st_mode
    )


def test_device(tmp_path: Path) -> None:
    save(state(), path := tmp_path / "x.safetensors")
    found = load(path, device="meta")
    assert all(t.device.type == "meta" for t in found.values())
    assert isinstance(found["a.weight"], GroupedExample) and found["a.weight"].codes.is_meta


def test_config_and_metadata(tmp_path: Path) -> None:
    config = ExampleConfig(refuse=(1, 2))
    save(state(), path := tmp_path / "x.safetensors", config=config, metadata={"made": "today"})
    assert load_config(path) == config
    assert read_header(path).metadata == {"made": "today", "format": "pt"}
    save(state(), path)
    assert load_config(path) is None
    (tmp_path / "x.safetensors").write_bytes(_with_config(path, '{"type":"Elsewhere"}'))
    assert_same(load(path), state())  # a config that nobody registered does not stop the weights
    with pytest.raises(ConfigError, match="unknown config type 'Elsewhere'"):
        load_config(path)


def _with_config(path: Path, config: str) -> bytes:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["ao_config"] = config
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


# --- ties


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    w, q = torch.randn(64, 64), ExampleTensor.from_float(torch.randn(64, 64))
    tied = {"a": w, "b": w, "c": q, "d": q.detach(), "e": q.detach()}
    save(tied, path := tmp_path / "x.safetensors")
    assert path.stat().st_size < w.nbytes + q.nbytes + 2000
    assert read_header(path).tied == {"a": ["b"], "c": ["d", "e"]}
    found = load(path)
    assert found["a"] is found["b"] and found["c"] is found["d"] is found["e"]
    assert_same(found, tied)
    moved = load(path, device="meta")
    assert moved["a"] is moved["b"] and moved["c"] is moved["e"]


# --- folders


def test_small_checkpoints_are_one_file_in_the_folder(tmp_path: Path) -> None:
    save(state(), tmp_path / "new" / "folder")
    assert files(tmp_path / "new" / "folder") == {"model.safetensors"}
    assert_same(load(tmp_path / "new" / "folder"), state())


def test_shards(tmp_path: Path) -> None:
    tied = state() | {"tail": torch.ones(7)}
    tied["head.weight"] = tied["embed.weight"]
    save(tied, tmp_path, max_shard_size=500, config=ExampleConfig(), metadata={"k": "v"})
    index = json.loads((tmp_path / INDEX).read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2 and files(tmp_path) == {INDEX, *names}
    count = f"of-{len(names):05d}.safetensors"
    assert [name.split("-", 2)[2] for name in names] == [
        f"{i:05d}-{count}" for i in range(1, len(names) + 1)
    ]
    plain, _ = flatten({name: t for name, t in tied.items() if name != "head.weight"})
    assert set(index["weight_map"]) == set(plain)
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in plain.values())}
    assert_same(load(tmp_path), tied)
    assert (found := load(tmp_path))["head.weight"] is found["embed.weight"]

    union: dict[str, Tensor] = {}
    for name in names:  # every shard is a checkpoint of its own
        alone = load(tmp_path / name)
        assert not union.keys() & alone.keys()
        assert load_config(tmp_path / name) == ExampleConfig()
        union |= alone
        stored = sum(t.nbytes for key, t in alone.items() if key != "head.weight")
        assert stored <= 500 or len(alone) == 1
    assert_same(union, tied)


def test_shards_take_a_tensor_that_is_larger_than_the_limit(tmp_path: Path) -> None:
    save(
        {"a": torch.zeros(100), "b": torch.zeros(1), "c": torch.zeros(1)},
        tmp_path,
        max_shard_size=8,
    )
    assert [sorted(load(path)) for path in sorted(tmp_path.glob("*.safetensors"))] == [
        ["a"],
        ["b", "c"],
    ]


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 MB", 1500000),
        ("2KiB", 2048),
        ("3gib", 3 * 2**30),
        ("10B", 10),
        (7, 7),
    ],
)
def test_sizes(size: int | str, number: int) -> None:
    from ao_core.checkpoint_folder import parse_size

    assert parse_size(size) == number


@pytest.mark.parametrize("size", ["", "5", "5 G", "GB", "-1GB", 0, -3, True, 2.5, "0B"])
def test_sizes_that_mean_nothing(tmp_path: Path, size: object) -> None:
    with pytest.raises(ValueError, match="a size is a number of bytes"):
        save(state(), tmp_path, max_shard_size=size)  # type: ignore[arg-type]


def test_every_form_replaces_every_form(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "other.safetensors").write_bytes(b"mine")
    mine = files(tmp_path)
    (tmp_path / ".model-0123abcd-00001-of-00002.safetensors.tmp").touch()  # of a killed save
    (tmp_path / "model-0123abcd-00001-of-00002.safetensors").touch()
    for i, limit in enumerate([100, 10**6, 100, 100, 10**6, 10**6]):
        new = state() | {"round": torch.tensor(i)}
        save(new, tmp_path, max_shard_size=limit)
        assert_same(load(tmp_path), new)
        form = {"model.safetensors"} if limit > 1000 else {INDEX, *read_names(tmp_path)}
        assert files(tmp_path) == mine | form


def read_names(folder: Path) -> set[str]:
    return set(json.loads((folder / INDEX).read_text())["weight_map"].values())


def test_a_folder_that_hugging_face_wrote_is_replaced(tmp_path: Path) -> None:
    save({"a": torch.zeros(3)}, tmp_path / "model-00001-of-00001.safetensors")
    content = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(content))
    assert_same(load(tmp_path), {"a": torch.zeros(3)})
    save(state(), tmp_path)
    assert files(tmp_path) == {"model.safetensors"}


def test_fields_may_lie_in_several_shards(tmp_path: Path) -> None:
    """Transformers cuts where it likes and puts the whole header into every shard."""
    plain, entries = flatten(state())
    header = encode_header(entries)
    from ao_core.checkpoint_file import write_file

    weight_map = {}
    for i, (name, t) in enumerate(plain.items()):
        weight_map[name] = f"model-{i:05d}.safetensors"
        write_file(tmp_path / weight_map[name], {name: t}, header)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load(tmp_path), state())
    with pytest.raises(
        CheckpointError, match=r"model-00003\.safetensors: embed.weight: its codes is missing"
    ):
        load(tmp_path / "model-00003.safetensors")


def test_savers_of_one_folder_take_turns(tmp_path: Path) -> None:
    def work(i: int) -> None:
        for n in range(3):
            save(
                {f"{i}.{j}": torch.full((50,), i + n) for j in range(4)},
                tmp_path,
                max_shard_size=100,
            )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load(tmp_path)
    assert len(found) == 4 and len({name.split(".")[0] for name in found}) == 1
    assert files(tmp_path) == {INDEX, *read_names(tmp_path)}


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
