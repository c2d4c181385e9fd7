"""Checkpoints: what is saved comes back bit for bit, from files, folders and shards."""

import io
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import assert_same, same, state, weight
from grouped_example import GroupedExample
from safetensors import safe_open
from torch import Tensor

from ao_core import checkpoint
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
from ao_core.checkpoint_file import write_file
from ao_core.checkpoint_folder import parse_size
from ao_core.errors import CheckpointError, ConfigError
from ao_core.testing.example_format import ExampleConfig, ExampleTensor

INDEX = "model.safetensors.index.json"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


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


@pytest.mark.parametrize("limit", [100, 10**9])
def test_a_folder_that_is_replaced_while_it_is_opened(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index names files that a save has just removed: the new checkpoint is what is loaded."""
    save(state(), tmp_path, max_shard_size=100)
    new = {"new": torch.ones(50), "more": torch.zeros(50)}
    opened = checkpoint._open_files

    def open_late(*args: Any) -> Any:
        monkeypatch.setattr(checkpoint, "_open_files", opened)
        save(new, tmp_path, max_shard_size=limit)
        return opened(*args)

    monkeypatch.setattr(checkpoint, "_open_files", open_late)
    assert_same(load(tmp_path), new)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_loading_maps_and_does_not_copy(tmp_path: Path) -> None:
    def private() -> int:
        """Bytes of memory that no file backs."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    w = ExampleTensor.from_float(torch.ones(4096, 4096))
    save({"a": w, "b": torch.ones(2**22)}, path := tmp_path / "x.safetensors")
    before = private()
    found = load(path)
    assert found["b"].sum() == 2**22 and found["a"].codes.sum(dtype=torch.int64) == 127 * 2**24
    assert private() - before < 2**22  # of 2**25
