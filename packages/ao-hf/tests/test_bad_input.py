"""What is wrong is named, in a sentence, before anything is computed with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import INT4, INT8, assert_same_state, causal_lm, load, logits
from torch import Tensor, nn

from ao_core.errors import CheckpointError, ConfigError, ConversionError
from ao_hf import AoConfig
from ao_quant import Int4WeightOnlyConfig, quantize_

Checkpoint = Callable[[str], Path]
LAYER = "model.layers.1.mlp.up_proj.weight"


def edit(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    """Change the tensors and the metadata of a checkpoint of one file."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {name: t.clone() for name, t in load_file(path).items()}
    change(state, metadata)
    save_file(state, path, metadata)


def edit_entry(metadata: dict[str, str], **change: Any) -> None:
    entries = json.loads(metadata["ao_tensors"])
    entries[LAYER] |= change
    metadata["ao_tensors"] = json.dumps(entries)


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    load(checkpoint("llama"), INT4).save_pretrained(tmp_path)
    return tmp_path


# --- weights that cannot be converted


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_weights_are_named(bad: float, tmp_path: Path) -> None:
    """All of them, not only the first."""
    model = causal_lm("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[3, 5] = bad
        model.model.layers[1].mlp.down_proj.weight[0, 0] = bad
    model.save_pretrained(tmp_path)
    with pytest.raises(ConversionError) as error:
        load(tmp_path, INT4)
    text = str(error.value)
    assert "2 parameters cannot be converted" in text
    assert "layers.0.self_attn.v_proj.weight: the weight contains NaN or inf" in text
    assert "layers.1.mlp.down_proj.weight: the weight contains NaN or inf" in text
    assert "modules_to_not_convert" in text
    kept = load(tmp_path, AoConfig(INT4, ["layers.0.self_attn.v_proj", "layers.1.mlp.down_proj"]))
    assert type(kept.model.layers[1].mlp.down_proj.weight) is nn.Parameter


def test_shapes_that_do_not_fit_the_model(tmp_path: Path) -> None:
    model = causal_lm("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 144}))
    message = (
        r"layers.0.mlp.gate_proj.weight: has shape \(136, 64\) in the checkpoint, "
        r"\(144, 64\) in the model"
    )
    with pytest.raises(ConversionError, match=message):
        load(tmp_path, INT4)


@pytest.mark.parametrize("group_size", [24, 128, 1024])
def test_groups_that_do_not_divide(group_size: int, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Any group size: the last group of a row is shorter, or the only one."""
    model = load(checkpoint("llama"), Int4WeightOnlyConfig(group_size=group_size))
    assert logits(model).isfinite().all()
    model.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))


def test_quantizing_twice(saved: Path) -> None:
    model = load(saved)
    with pytest.raises(ConversionError, match="is quantized already"):
        quantize_(model, INT8)
    config = json.loads((saved / "config.json").read_text())
    del config["quantization_config"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError,
        match=r"model.safetensors: holds weights that are quantized already, though config.json",
    ):
        load(saved, INT8)


# --- checkpoints that are damaged


def test_a_truncated_file(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is truncated"):
        load(saved)


def test_an_unknown_format_version(saved: Path) -> None:
    edit(saved, lambda state, metadata: metadata.update(ao_format_version="7"))
    with pytest.raises(
        CheckpointError,
        match=r"model.safetensors: has format version .7.* this release of ao-core reads version 1",
    ):
        load(saved)


def test_float_weights_under_a_quantized_config(saved: Path, checkpoint: Checkpoint) -> None:
    (saved / "model.safetensors").unlink()
    for file in checkpoint("llama").glob("model*"):
        shutil.copy(file, saved)
    with pytest.raises(CheckpointError, match="has no ao_format_version in its header"):
        load(saved)


@pytest.mark.parametrize("field", ["codes", "scale"])
def test_a_missing_field(field: str, saved: Path) -> None:
    edit(saved, lambda state, metadata: state.pop(f"{LAYER}_{field}"))
    with pytest.raises(
        CheckpointError, match=f"{LAYER}: its {field} is missing: there is no {LAYER}_{field}"
    ):
        load(saved)


def test_a_field_of_another_dtype(saved: Path) -> None:
    edit(
        saved,
        lambda state, metadata: state.update({f"{LAYER}_scale": state[f"{LAYER}_scale"].half()}),
    )
    with pytest.raises(
        CheckpointError, match=f"{LAYER}: the header says that {LAYER}_scale is bfloat16"
    ):
        load(saved)


def test_a_field_of_another_shape(saved: Path) -> None:
    edit(
        saved, lambda state, metadata: state.update({f"{LAYER}_codes": state[f"{LAYER}_codes"][1:]})
    )
    with pytest.raises(
        CheckpointError, match=f"{LAYER}: the header says that {LAYER}_codes is uint8"
    ):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "Evil"}, "no tensor class named 'Evil'"),
        ({"shape": [10**9, 10**9, 10**9]}, "shape is a list of sizes"),
        ({"dtype": "int8"}, "dtype is the float weight's"),
        ({"more": 1}, "its entry has the keys"),
        ({"meta": {}}, "the meta of IntxTensor is"),
        ({"shape": [64, 136]}, "not a possible IntxTensor"),
    ],
)
def test_an_edited_header(change: dict[str, Any], message: str, saved: Path) -> None:
    edit(saved, lambda state, metadata: edit_entry(metadata, **change))
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_a_model_of_another_size(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 144}))
    with pytest.raises(
        CheckpointError, match=r"has shape \[136, 64\] in the checkpoint, \[144, 64\] in the model"
    ):
        load(saved)


def test_an_edited_config(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="AoConfig has no field 'group_size'"):
        load(saved)


def test_files_that_are_not_safetensors(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(state, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="read from safetensors files"):
        load(saved)


def test_saving_what_transformers_does_not_know(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A model that quantize_ converted says how to save it."""
    model = load(checkpoint("llama"))
    quantize_(model, INT8)
    with pytest.raises(TypeError, match="attach"):
        model.save_pretrained(tmp_path)
