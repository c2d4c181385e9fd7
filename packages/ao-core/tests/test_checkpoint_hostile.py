"""Files that no release wrote: each is refused by name, and nothing in it is built or run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from grouped_example import GroupedExample
from torch import nn

from ao_core import checkpoint_file
from ao_core.checkpoint import load, read_header, save
from ao_core.errors import CheckpointError
from ao_core.testing.example_format import ExampleTensor

INDEX = "model.safetensors.index.json"
Header = dict[str, Any]


def valid(path: Path) -> tuple[Header, bytes]:
    """Header and data of a good file: a quantized w, a plain b, and t that is tied to b."""
    w = GroupedExample.from_float(torch.linspace(-1, 1, 240).reshape(6, 40))
    b = torch.arange(6.0)
    save({"w": w, "b": b, "t": b}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def file(header: Header | bytes | str, data: bytes) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


def edit(path: Path, change: Callable[[Header], object], key: str | None = None) -> None:
    """Change the header of a good file, or the JSON under one key of its metadata."""
    header, data = valid(path)
    if key is None:
        change(header)
    else:
        inner = json.loads(header["__metadata__"][key])
        change(inner)
        header["__metadata__"][key] = json.dumps(inner)
    path.write_bytes(file(header, data))


def refused(path: Path, message: str) -> None:
    """By load, by load into a model, and by read_header; the model is as it was."""
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(6, 40))
    before = model.w
    for read in (load, read_header, lambda p: load(p, model=model, strict=False)):
        with pytest.raises(CheckpointError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
        assert len(str(error.value)) < 1000
    assert model.w is before and before.sum() == 0


def test_the_good_file_is_good(tmp_path: Path) -> None:
    edit(path := tmp_path / "x.safetensors", lambda header: None)
    assert set(load(path)) == {"w", "b", "t"}


# --- the file


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is truncated, or not a safetensors file: it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        (b"\x00" * 8, "the header cannot be read"),
        (b"\xff" * 8, "begin with a header of 18446744073709551615"),
        ((2**63).to_bytes(8, "little") + b"{}", "begin with a header of 9223372036854775808"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "a header of 200000000 .at most 100000000."),
        ((3).to_bytes(8, "little") + b"{}", "it has 10 bytes, and they begin with a header of 3"),
        (file(b"\xff\xfe{}", b""), "the header is not UTF-8"),
        (file("[]", b""), r"the header is a JSON object, got \[\]"),
        (file("{", b""), "the header cannot be read"),
        (file("null", b""), "the header is a JSON object, got None"),
        (file("[" * 100_000, b""), "the header is nested too deep"),
        (file('{"a":' * 100_000, b""), "the header is nested too deep"),
        (file('{"a":1,"a":2}', b""), "the header cannot be read: 'a' is there twice"),
        (file('{"a":NaN}', b""), "NaN is not a JSON value"),
        (file('{"a":' + "9" * 5000 + "}", b""), "is no size"),
        (file("{}", b""), "has no ao_format_version in its header"),
        (file('{"__metadata__":[]}', b""), "__metadata__ maps strings to strings"),
        (file('{"__metadata__":{"ao_format_version":1}}', b""), "__metadata__ maps strings"),
        (pickle.dumps({"a": 1}), "is truncated, or not a safetensors file"),
        (b"PK\x03\x04" + b"\x00" * 60, "header"),
    ],
    ids=range(21),
)
def test_not_a_safetensors_file(tmp_path: Path, raw: bytes, message: str) -> None:
    (path := tmp_path / "x.safetensors").write_bytes(raw)
    refused(path, message)


def test_header_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valid(path := tmp_path / "x.safetensors")
    monkeypatch.setattr(checkpoint_file, "MAX_HEADER", 500)
    refused(path, "at most 500")
    with pytest.raises(ValueError, match="its header would take"):
        valid(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    valid(path := tmp_path / "x.safetensors")
    raw = path.read_bytes()
    for length in (*range(0, len(raw), 5), len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match="is truncated"):
            load(path)
    path.write_bytes(raw + b"\x00")
    refused(path, "has bytes that belong to no tensor")


def test_any_byte_of_the_header_changed(tmp_path: Path) -> None:
    """Refused, or a checkpoint that hangs together: no other exception, no crash."""
    valid(path := tmp_path / "x.safetensors")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    refusals = 0
    for at in range(8 + length):
        for new in (raw[at] ^ 1, ord('9"'[at % 2])):
            path.write_bytes(raw[:at] + bytes([new]) + raw[at + 1 :])
            try:
                for t in load(path).values():
                    repr(t.dequantize() if isinstance(t, GroupedExample) else t)
            except CheckpointError:
                refusals += 1
    assert refusals > length


TENSOR_CASES = {
    "unknown dtype": ("b", "dtype", "F7", "b: unknown dtype 'F7'; known: BOOL"),
    "dtype of another kind": ("b", "dtype", 5, "b: unknown dtype 5"),
    "dtype of another size": ("b", "dtype", "F64", r"b: F64 \[6\] takes 48 bytes, not 24"),
    "shape": ("b", "shape", [7], r"b: F32 \[7\] takes 28 bytes, not 24"),
    "negative size": ("b", "shape", [-6], r"b: a shape is a list of sizes, got \[-6\]"),
    "bool size": ("b", "shape", [True, 6], "b: a shape is a list of sizes"),
    "float size": ("b", "shape", [6.0], "b: a shape is a list of sizes"),
    "huge size": ("b", "shape", [2**62, 4], "b: a shape is a list of sizes"),
    "huge empty": ("b", "shape", [2**62, 0, 4], "b: a shape is a list of sizes"),
    "many dimensions": ("b", "shape", [1] * 1000, "b: a shape is a list of sizes"),
    "no list": ("b", "shape", "6", "b: a shape is a list of sizes, got '6'"),
    "offsets": ("b", "data_offsets", [0], r"b: data_offsets are a begin and an end, got \[0\]"),
    "reversed": ("b", "data_offsets", [24, 0], "b: data_offsets are a begin and an end"),
    "negative": ("b", "data_offsets", [-24, 0], "b: data_offsets are a begin and an end"),
    "of floats": ("b", "data_offsets", [0.0, 24.0], "b: data_offsets are a begin and an end"),
    "far away": ("b", "data_offsets", [2**60, 2**60 + 24], "begins at"),
    "overlap": ("b", "data_offsets", [1, 25], "begins at 1, the one before ends at 0|begins at"),
}


@pytest.mark.parametrize("case", TENSOR_CASES)
def test_tensor_descriptions(tmp_path: Path, case: str) -> None:
    name, key, value, message = TENSOR_CASES[case]
    edit(path := tmp_path / "x.safetensors", lambda header: header[name].update({key: value}))
    refused(path, message)


def test_tensor_description_with_other_keys(tmp_path: Path) -> None:
    edit(path := tmp_path / "x.safetensors", lambda header: header["b"].update(more=1))
    refused(path, "b: a tensor is described by dtype, shape and data_offsets")
    edit(path, lambda header: header.update(b=[]))
    refused(path, "b: a tensor is described by")


@pytest.mark.parametrize(
    "name", ["", "../b", "/b", "a/../b", "a\\b", "a\x00b", "a\nb", "b" * 5000, "./b", "a//b"]
)
def test_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    edit(path, lambda header: header.update({name: header.pop("b")}))
    refused(path, "the name of a tensor")
    edit(path, lambda entries: entries.update({name: entries.pop("w")}), "ao_tensors")
    refused(path, "the name of a tensor")
    edit(path, lambda tied: tied.update(b=[name]), "ao_tied")
    refused(path, "the name of a tensor")


# --- the metadata


def test_versions(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for version in ("2", "", "1.0", "0"):
        edit(path, lambda header, v=version: header["__metadata__"].update(ao_format_version=v))
        refused(
            path, f"has format version '{version}', and this release of ao-core reads version 1"
        )
    edit(path, lambda header: header["__metadata__"].pop("ao_format_version"))
    refused(path, "is not a checkpoint of this toolkit")


METADATA_CASES = {
    "unknown key": (
        "ao_other",
        "1",
        "has the key 'ao_other', which format version 1 does not know",
    ),
    "broken JSON": ("ao_tensors", "{", "ao_tensors cannot be read"),
    "no object": ("ao_tensors", "[]", r"ao_tensors is a JSON object, got \[\]"),
    "deep": ("ao_tensors", "[" * 50_000, "ao_tensors is nested too deep"),
    "deep inside": ("ao_tensors", '{"w":' * 50_000, "ao_tensors is nested too deep"),
    "twice": ("ao_tensors", '{"w":1,"w":2}', "ao_tensors cannot be read: 'w' is there twice"),
    "NaN": ("ao_config", '{"a":NaN}', "ao_config cannot be read: NaN"),
    "infinite": ("ao_config", '{"a":-Infinity}', "ao_config cannot be read: -Infinity"),
    "config": ("ao_config", "3", "ao_config is a JSON object, got 3"),
    "tied list": ("ao_tied", "[]", "ao_tied is a JSON object"),
    "tied to nothing": ("ao_tied", '{"b":[]}', "ao_tied gives 'b' no list of names"),
    "tied to text": ("ao_tied", '{"b":"t"}', "ao_tied gives 'b' no list of names"),
    "tied number": ("ao_tied", '{"b":[1]}', "1 cannot be the name of a tensor"),
    "tied twice": ("ao_tied", '{"b":["t","t"]}', "ao_tied names 't' twice"),
    "tied to itself": ("ao_tied", '{"b":["b"]}', "ao_tied names 'b' twice"),
    "tied in a chain": ("ao_tied", '{"b":["t"],"t":["u"]}', "ao_tied names 't' twice"),
    "tied to what is not there": ("ao_tied", '{"z":["t"]}', "t: tied to z, which is not there"),
    "tied to a field": ("ao_tied", '{"w_scale":["t"]}', "t: tied to w_scale, which is not there"),
    "tied and there": ("ao_tied", '{"b":["w"]}', "w: there twice, as a tensor and tied to b"),
    "tied and a field": ("ao_tied", '{"b":["w_codes"]}', "w_codes: there twice"),
}


@pytest.mark.parametrize("case", METADATA_CASES)
def test_metadata(tmp_path: Path, case: str) -> None:
    key, value, message = METADATA_CASES[case]
    path = tmp_path / "x.safetensors"
    edit(path, lambda header: header["__metadata__"].update({key: value}))
    refused(path, message)


# --- one entry: (path inside it, value, message); a value of ... removes the key

ENTRY_CASES = {
    "not an object": ((), [], "w: its entry has the keys class, shape, dtype, fields, meta; got"),
    "missing key": (("dtype",), ..., "w: its entry has the keys"),
    "other key": (("code",), "import os", "w: its entry has the keys"),
    "unknown class": (
        ("class",),
        "os.system",
        "w: no tensor class named 'os.system' is registered",
    ),
    "class of Python": (("class",), "Tensor", "w: no tensor class named 'Tensor' is registered"),
    "class of no kind": (("class",), ["a"], "w: no tensor class named"),
    "class that is registered": (("class",), "ExampleTensor", "w: the fields of ExampleTensor are"),
    "dtype": (("dtype",), "float31", "w: unknown dtype 'float31'; known: bool, uint8"),
    "dtype of torch": (("dtype",), "load", "w: unknown dtype 'load'"),
    "integer dtype": (("dtype",), "int8", "w: dtype is the float weight's, got 'int8'"),
    "shape": (("shape",), [6, 41], r"w: not a possible .* needs \[6, 24\]"),
    "rank": (("shape",), [240], "w: not a possible GroupedExample: zip"),
    "huge shape": (("shape",), [2**31, 2**31, 2**31], "w: a shape is a list of sizes"),
    "empty shape": (("shape",), [0, 2**60], "w: not a possible GroupedExample"),
    "fields": (("fields",), [], "w: fields is a JSON object"),
    "missing field": (
        ("fields", "scale"),
        ...,
        "w: the fields of .* are codes, scale, zero; scale is",
    ),
    "absent optional field": (("fields", "zero"), ..., None),
    "other field": (("fields", "__class__"), {}, "w: the fields of .*; got '__class__'"),
    "field of no kind": (("fields", "zero"), 3, "w_zero: described by dtype and shape, got 3"),
    "field shape": (("fields", "scale", "shape"), [6, 2], r"scale has shape \[6, 2\]"),
    "field huge": (("fields", "scale", "shape"), [2**40, 2**40], "w_scale: a shape is a list"),
    "field dtype": (
        ("fields", "scale", "dtype"),
        "float32",
        "w_scale is float32 .*, but it is bfloat16",
    ),
    "field unknown dtype": (("fields", "scale", "dtype"), "int3", "w_scale: unknown dtype 'int3'"),
    "codes dtype": (("fields", "codes", "dtype"), "int8", "codes are uint8, got torch.int8"),
    "meta": (("meta",), [], "w: the meta of GroupedExample is transposed, group_size, bits"),
    "missing meta": (("meta", "bits"), ..., "w: the meta of GroupedExample is"),
    "other meta": (("meta", "__init__"), 1, "w: the meta of GroupedExample is"),
    "shape in meta": (("meta", "shape"), [1], "w: the meta of GroupedExample is"),
    "type": (("meta", "group_size"), "16", "w: group_size is int, got '16'"),
    "bool for int": (("meta", "group_size"), True, "w: group_size is int, got True"),
    "int for bool": (("meta", "transposed"), 0, "w: transposed is bool, got 0"),
    "null for int": (("meta", "bits"), None, "w: bits is int, got None"),
    "list": (("meta", "note"), ["a"], "w: note is str or null, got"),
    "int for float": (("meta", "share"), 1, None),
    "no groups": (("meta", "group_size"), 0, "a block of scale has 0 elements"),
    "negative groups": (("meta", "group_size"), -16, "a block of scale has -16 elements"),
    "other groups": (("meta", "group_size"), 8, r"scale has shape \[6, 3\], .* needs \[6, 5\]"),
    "huge groups": (("meta", "group_size"), 10**15, r"scale has shape \[6, 3\], .* needs \[6, 1\]"),
    "no bits": (("meta", "bits"), 0, "bits is 1 to 8, got 0"),
    "many bits": (("meta", "bits"), 10**12, "bits is 1 to 8"),
    "other bits": (("meta", "bits"), 5, r"codes has shape \[6, 20\], .* needs \[6, 25\]"),
    "transposed": (("meta", "transposed"), True, "w: not a possible GroupedExample"),
}


@pytest.mark.parametrize("case", ENTRY_CASES)
def test_entries(tmp_path: Path, case: str) -> None:
    where, value, message = ENTRY_CASES[case]

    def change(entries: Header) -> None:
        target: Any = {"": entries["w"]} if not where else entries["w"]
        for key in where[:-1]:
            target = target[key]
        last = where[-1] if where else ""
        if value is ...:
            del target[last]
        else:
            target[last] = value
        if not where:
            entries["w"] = target[""]

    edit(path := tmp_path / "x.safetensors", change, "ao_tensors")
    if message is None:
        assert "w" in load(path)
    else:
        refused(path, message)


def test_fields_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    edit(path, lambda entries: entries.update(z=entries["w"]), "ao_tensors")
    refused(path, "z: its codes is missing: there is no z_codes")
    edit(path, lambda header: header.update(w_weight=header.pop("w_codes")))
    refused(path, "w: its codes is missing: there is no w_codes")
    edit(path, lambda header: header.update(w=header.pop("b")))
    refused(path, "w: there twice, as GroupedExample and as plain tensor")
    edit(path, lambda header: header["w_scale"].update(shape=[3, 6]))
    refused(
        path, r"w: the header says that w_scale is bfloat16 \[6, 3\], but it is bfloat16 \[3, 6\]"
    )
    edit(path, lambda header: header["w_scale"].update(dtype="F16"))
    refused(path, "w_scale is bfloat16 .*, but it is float16")


def test_two_entries_cannot_share_a_field(tmp_path: Path) -> None:
    """Field names are joined by an underscore, so a name can be reached in two ways."""

    def change(entries: Header) -> None:
        entries["w_codes"] = entries.pop("w")

    edit(path := tmp_path / "x.safetensors", change, "ao_tensors")
    refused(path, "w_codes: there twice")


# --- folders


def shards(folder: Path) -> tuple[dict[str, Any], list[str]]:
    tensors = {
        "a": ExampleTensor.from_float(torch.ones(4, 16)),
        "b": torch.ones(20),
        "c": torch.ones(20),
    }
    save(tensors, folder, max_shard_size=80)
    index = json.loads((folder / INDEX).read_text())
    return index, sorted(set(index["weight_map"].values()))


ELSEWHERE = ("../x", "/etc/x", "a/b", "a\\b", "a\0", "~/x", ".x", "", "x.safetensors/..")


@pytest.mark.parametrize(
    "name", [*(f"{n}.safetensors" for n in ELSEWHERE), "x.bin", "..", "", 3, None, ["x"]]
)
def test_an_index_that_points_elsewhere(tmp_path: Path, name: object) -> None:
    index, _ = shards(folder := tmp_path / "folder")
    save({"b": torch.zeros(20)}, tmp_path / "x.safetensors")
    index["weight_map"]["b"] = name
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "b: .* is not the name of a safetensors file in the index's own folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the index cannot be read"),
        ("[]", "has no weight_map"),
        ('{"weight_map":[]}', "has no weight_map"),
        ('{"weight_map":{}}', "has no weight_map"),
        ('{"weight_map":{"a":"b","a":"c"}}', "'a' is there twice"),
        ("[" * 100_000, "the index is nested too deep"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    shards(tmp_path)
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, message)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    index, names = shards(tmp_path)
    good = (tmp_path / INDEX).read_text()

    def with_map(**change: str) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | change}))

    with_map(d=names[0])
    refused(tmp_path, "d: not in the file that the index says it is in")
    with_map(b=names[0])
    refused(tmp_path, "b: not in the file that the index says it is in")
    with_map(b=names[2], c=names[1])
    refused(tmp_path, f"{names[1]}: b: the index does not say that it is here")
    with_map(d="elsewhere.safetensors")
    refused(tmp_path, f"{INDEX}: elsewhere.safetensors is not there")
    (tmp_path / INDEX).write_text(good)
    content = (tmp_path / names[2]).read_bytes()
    (tmp_path / names[2]).write_bytes((tmp_path / names[1]).read_bytes())
    refused(tmp_path, f"{names[2]}: b: another file of the folder has it too")
    (tmp_path / names[2]).write_bytes(content[:-1])
    refused(tmp_path, f"{names[2]}: is truncated")
    (tmp_path / names[2]).unlink()
    refused(tmp_path, f"{INDEX}: {names[2]} is not there")


def test_shards_of_different_checkpoints(tmp_path: Path) -> None:
    from ao_core.testing.example_format import ExampleConfig

    _, names = shards(tmp_path)
    save({"b": torch.ones(20)}, tmp_path / names[1], config=ExampleConfig())
    refused(tmp_path, "its files were saved with different configs")


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path, f"holds neither {INDEX} nor model.safetensors")
    _, names = shards(tmp_path)
    (tmp_path / INDEX).unlink()
    refused(tmp_path, "holds neither")
    assert load(tmp_path / names[0])


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load(tmp_path / "none.safetensors")


def test_a_file_that_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"a": torch.zeros(3)}, path := tmp_path / "x.safetensors")
    header = checkpoint_file.read_file_header(path)
    save({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="was replaced while it was being read"):
        checkpoint_file.read_tensors(path, header)
    path.unlink()
    with pytest.raises(CheckpointError, match="was replaced while it was being read"):
        checkpoint_file.read_tensors(path, header)
