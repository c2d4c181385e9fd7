"""Quantize while loading, save, reload: bit by bit, for every format, and readable by ao_core
too."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    FORMATS,
    INT4,
    INT8,
    assert_same_state,
    causal_lm,
    difference,
    load,
    logits,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

import ao_hf
from ao_core import checkpoint as checkpoints
from ao_core.config import AOBaseConfig
from ao_core.errors import ConversionError
from ao_core.tensor import QTensor
from ao_hf import AoConfig
from ao_quant import FqnToConfig, quantize_

Checkpoint = Callable[[str], Path]


def names_in(folder: Path) -> dict[str, list[str]]:
    """Tensor names by file."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.name] = sorted(file.keys())
    return found


def assert_ao_core_reads(folder: Path, model: PreTrainedModel) -> None:
    """ao_core.checkpoint gives what the model has, ties included."""
    state, ours = checkpoints.load(folder), model.state_dict()
    assert set(state) == set(ours)
    assert all(
        type(t) is type(ours[name]) and torch.equal(t, ours[name]) for name, t in state.items()
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """save -> load -> save -> load, equal bits each time; the same weights that quantize_ makes."""
    config = FORMATS[name]
    model = load(checkpoint("llama"), config)
    by_hand = load(checkpoint("llama"))
    quantize_(by_hand, config, lambda m, fqn: isinstance(m, nn.Linear) and fqn != "lm_head")
    assert_same_state(model, by_hand)
    float_logits = logits(load(checkpoint("llama")))
    assert difference(float_logits, logits(model)) < (0.5 if name == "int3" else 0.25)

    model.save_pretrained(tmp_path / "once")
    once = load(tmp_path / "once")
    assert_same_state(model, once)
    assert torch.equal(logits(model), logits(once))
    assert once.dtype == torch.bfloat16 and not any(
        p.requires_grad for p in once.parameters() if isinstance(p, QTensor)
    )
    once.save_pretrained(tmp_path / "twice")
    assert_same_state(model, load(tmp_path / "twice"))
    once_header, twice_header = (checkpoints.read_header(tmp_path / n) for n in ("once", "twice"))
    assert once_header == twice_header
    assert_ao_core_reads(tmp_path / "once", model)


def test_what_is_on_disk(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Plain tensors beside the module; codes are never called weight."""
    model = load(checkpoint("tied"), FORMATS["int4 hqq"])
    model.save_pretrained(tmp_path)
    (names,) = names_in(tmp_path).values()
    layer = "model.layers.0.mlp.down_proj.weight"
    assert {f"{layer}_codes", f"{layer}_scale", f"{layer}_zero"} <= set(names)
    assert layer not in names and "lm_head.weight" not in names
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["ao_format_version"] == "1"
    assert json.loads(metadata["ao_tied"]) == {"model.embed_tokens.weight": ["lm_head.weight"]}
    assert checkpoints.load_config(tmp_path) == FORMATS["int4 hqq"]
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert AoConfig.from_dict(config) == AoConfig(FORMATS["int4 hqq"])


@pytest.mark.parametrize("kind", ["llama", "tied"])
@pytest.mark.parametrize("name", ["int8", "int4 hqq"])
def test_embeddings(kind: str, name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Converted on request; tied ones are one tensor, stored once, and tied after loading."""
    model = load(checkpoint(kind), AoConfig(FORMATS[name], include_embedding=True))
    tied = kind == "tied"
    for step in ("once", "twice"):
        embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
        assert isinstance(embedding, QTensor) and isinstance(head, QTensor)
        assert (embedding is head) is tied
        model.save_pretrained(tmp_path / step)
        (names,) = names_in(tmp_path / step).values()
        assert ("lm_head.weight_codes" in names) is not tied
        assert_ao_core_reads(tmp_path / step, model)
        reloaded = load(tmp_path / step)
        assert_same_state(model, reloaded)
        assert torch.equal(logits(model), logits(reloaded))
        model = reloaded
    report = model.quantization_report
    assert report["lm_head"].status == ("tied" if tied else "converted")
    assert difference(logits(load(checkpoint(kind))), logits(model)) < 0.3


@pytest.mark.parametrize("tied", [True, False])
def test_many_files(tied: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Fields of a tensor may end up in two files; readers look at all of them."""
    model = load(checkpoint("tied" if tied else "llama"), AoConfig(INT4, include_embedding=True))
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    files = names_in(tmp_path)
    assert len(files) > 5
    stored = [name for names in files.values() for name in names]
    assert len(stored) == len(set(stored))
    assert_same_state(model, load(tmp_path))
    assert_ao_core_reads(tmp_path, model)
    load(tmp_path).save_pretrained(tmp_path / "whole")
    assert_same_state(model, load(tmp_path / "whole"))


def test_several_formats_in_one_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rules = FqnToConfig({"re:.*self_attn.*": INT8, "re:.*up_proj": None, "_default": INT4})
    model = load(checkpoint("llama"), rules)
    kinds = {type(p).__name__ for p in model.parameters()}
    assert kinds == {"Int8Tensor", "IntxTensor", "Parameter"}
    model.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_another_dtype(dtype: torch.dtype, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The float part follows `dtype`, codes and scales stay what they are."""
    model = load(checkpoint("tied"), AoConfig(INT4, include_embedding=True))
    model.save_pretrained(tmp_path)
    other = load(tmp_path, dtype=dtype)
    assert {p.dtype for p in other.parameters()} == {dtype}
    assert logits(other).dtype == dtype
    for name, p in model.named_parameters():
        if isinstance(p, QTensor):
            theirs = other.get_parameter(name).tensors()
            assert all(
                t.dtype == theirs[k].dtype and torch.equal(t, theirs[k])
                for k, t in p.tensors().items()
            )
    assert difference(logits(other), logits(model)) < 0.05
    on_the_fly = load(checkpoint("tied"), INT4, dtype=dtype)
    assert {p.dtype for p in on_the_fly.parameters()} == {dtype}


def test_from_float32(tmp_path: Path) -> None:
    """The checkpoint's own dtype is what is quantized when none is asked for."""
    model = causal_lm("llama", torch.float32)
    model.save_pretrained(tmp_path)
    quantized = load(tmp_path, INT8)
    assert quantized.dtype == torch.float32
    assert difference(logits(model), logits(quantized)) < 0.02


def test_without_and_with_the_head(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Transformers drops or adds the prefix of the base model, and so do we."""
    load(checkpoint("llama"), INT4).save_pretrained(tmp_path / "lm")
    base = AutoModel.from_pretrained(tmp_path / "lm")
    lm = load(tmp_path / "lm")
    assert_same_state(base, lm.model)
    base.save_pretrained(tmp_path / "base")
    assert all(
        not name.startswith("model.") for name in names_in(tmp_path / "base")["model.safetensors"]
    )
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"} and not info["unexpected_keys"]
    assert_same_state(again.model, lm.model)


def test_a_new_head_stays_in_float(checkpoint: Checkpoint) -> None:
    """What the checkpoint lacks is initialized by Transformers, and reported."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoint("llama"), quantization_config=AoConfig(INT4), num_labels=3
    )
    assert not isinstance(model.score.weight, QTensor) and model.score.weight.std() > 0
    row = model.quantization_report["score"]
    assert row.status == "skipped" and "not in the checkpoint" in row.what
    assert isinstance(model.model.layers[0].mlp.up_proj.weight, QTensor)


def test_dequantize(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Back to a float model that saves as one, also after save_pretrained (config.dtype is text
    then)."""
    model = load(checkpoint("tied"), AoConfig(INT8, include_embedding=True))
    model.save_pretrained(tmp_path / "quantized")
    expected = logits(model)
    model.dequantize()
    assert not any(isinstance(p, QTensor) for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")
    assert difference(expected, logits(model)) < 0.03
    model.save_pretrained(tmp_path / "float")
    plain = load(tmp_path / "float")
    assert_same_state(model, plain)
    assert not hasattr(plain.config, "quantization_config")


def test_dequantize_to_another_dtype(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), INT8)
    exact = model.model.layers[0].mlp.up_proj.weight.to(torch.float32).dequantize()
    model.dequantize(torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.dtype == torch.float32
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, exact)


def test_attach(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A model that quantize_ converted after loading is saved like any other."""
    model = load(checkpoint("llama"))
    quantize_(model, INT8, lambda m, fqn: isinstance(m, nn.Linear) and fqn != "lm_head")
    report = ao_hf.attach(model, INT8)
    assert report is model.quantization_report and len(report.converted) == 14
    model.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))
    assert_same_state(model, load(checkpoint("llama"), INT8))
    assert difference(logits(model), logits(model.dequantize())) < 0.03
    with pytest.raises(ConversionError, match="the model has no quantized weight"):
        ao_hf.attach(load(checkpoint("llama")), INT8)


def test_an_untied_head_stays_untied(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """quantize_(tied="untie") ends a tie that config.json still asks for."""
    model = load(checkpoint("tied"))
    quantize_(model, FqnToConfig({"model.embed_tokens": INT8}), tied="untie")
    ao_hf.attach(model, INT8)
    assert not isinstance(model.lm_head.weight, QTensor)
    model.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert_same_state(model, reloaded)
    assert torch.equal(logits(model), logits(reloaded))


def test_a_weight_that_another_weights_step_brings(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Transformers asks for the first of the weights that a fused tensor is split into; the others
    count too."""
    from safetensors.torch import load_file, save_file
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter

    model = load(checkpoint("llama"))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for layer in (0, 1):
        gate, up = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        state[f"model.layers.{layer}.mlp.fused.weight"] = torch.cat(
            [state.pop(gate), state.pop(up)]
        )
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    targets = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    converter = WeightConverter("mlp.fused.weight", targets, [Chunk(dim=0)])
    register_checkpoint_conversion_mapping("LlamaForCausalLM", [converter])
    try:
        both = load(tmp_path, INT8)
        up_only = load(tmp_path, AoConfig(INT8, ["gate_proj"]))
        assert_same_state(both, load(checkpoint("llama"), INT8))
        assert_same_state(up_only, load(checkpoint("llama"), AoConfig(INT8, ["gate_proj"])))
        both.dequantize().save_pretrained(tmp_path / "float")
        assert (
            "model.layers.0.mlp.fused.weight" in names_in(tmp_path / "float")["model.safetensors"]
        )
    finally:
        register_checkpoint_conversion_mapping("LlamaForCausalLM", [], overwrite=True)


def test_config_in_the_header_is_optional(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A folder that ao_core.checkpoint wrote loads, given a config.json."""
    model = load(checkpoint("tied"), AoConfig(INT4, include_embedding=True))
    checkpoints.save(model, tmp_path, max_shard_size="20KB")
    model.config.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))


def config_of(model: PreTrainedModel) -> AOBaseConfig:
    return model.config.quantization_config.quant_type


def test_a_config_that_is_passed_to_a_quantized_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Transformers says that the checkpoint's is used, and it is."""
    load(checkpoint("llama"), INT4).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model = load(tmp_path, INT8)
    assert config_of(model) == INT4
    assert_same_state(model, load(tmp_path))


def test_saving_over_the_folder_that_was_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The weights may be mapped from the very files that are written."""
    load(checkpoint("llama"), INT4).save_pretrained(tmp_path)
    model = load(tmp_path)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(load(tmp_path)), expected)
