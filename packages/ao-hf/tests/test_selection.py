"""Which weights are converted, and which are reported as left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, INT4, INT8, load, quantized_names
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, PreTrainedModel

from ao_core.errors import ConversionError
from ao_hf import AoConfig
from ao_hf.selection import select
from ao_quant import FqnToConfig

LINEARS = [f"self_attn.{n}_proj.weight" for n in "qkvo"] + [
    f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")
]
ALL = {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in LINEARS}


def on_meta(kind: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[kind]())


def chosen(kind: str, *args: Any, **kwargs: Any) -> set[str]:
    return set(select(on_meta(kind), AoConfig(*args, **kwargs)).chosen)


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_default_is_every_linear_but_the_head(kind: str) -> None:
    selection = select(on_meta(kind), AoConfig(INT4))
    assert set(selection.chosen) == ALL
    assert selection.skipped.keys() == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "include_embedding=True" in selection.skipped["lm_head.weight"]


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_embeddings_on_request(kind: str) -> None:
    both = {"model.embed_tokens.weight", "lm_head.weight"}
    assert chosen(kind, INT4, include_embedding=True) == ALL | both
    rules = FqnToConfig({"_default": INT4})
    assert chosen(kind, rules, include_embedding=True) == ALL | both


def test_other_embeddings_stay() -> None:
    """Positions are an nn.Embedding too, and no token embedding."""
    with torch.device("meta"):
        sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = AutoModelForMaskedLM.from_config(BertConfig(**sizes, intermediate_size=72))
    selection = select(model, AoConfig(INT4, include_embedding=True))
    embeddings = {name for name in selection.chosen if "embeddings" in name or "decoder" in name}
    assert embeddings == {
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    }


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("model.layers.1", {n for n in ALL if "layers.1." in n}),  # a prefix, up to a dot
        (r"model\.layers\.\d+\.mlp", {n for n in ALL if "mlp" in n}),  # a regular expression
        ("o_proj", {n for n in ALL if "o_proj" in n}),  # the end of a name
        ("model.layers.0.mlp.up_proj.weight", {"model.layers.0.mlp.up_proj.weight"}),
    ],
)
def test_modules_to_not_convert(pattern: str, gone: set[str]) -> None:
    selection = select(on_meta("llama"), AoConfig(INT4, [pattern]))
    assert set(selection.chosen) == ALL - gone
    assert all(selection.skipped[name] == "modules_to_not_convert names it" for name in gone)


def test_modules_to_not_convert_win_over_rules() -> None:
    rules = FqnToConfig({"model.layers.0.mlp.up_proj": INT8, "_default": INT4})
    assert chosen("llama", rules, ["up_proj"]) == {n for n in ALL if "up_proj" not in n}


def test_rules_by_name_and_pattern() -> None:
    rules = {
        "model.layers.0.self_attn.q_proj": INT8,
        r"re:.*down_proj\.weight": None,
        r"re:model\.layers\.1\..*": INT8,
        "lm_head": INT8,
        "_default": INT4,
    }
    selection = select(on_meta("llama"), AoConfig(FqnToConfig(rules)))
    configs = {name: target.config for name, target in selection.chosen.items()}
    assert configs.pop("lm_head.weight") == INT8  # named, so it is meant
    assert set(configs) == {n for n in ALL if "down_proj" not in n}
    eight = {n for n in configs if "layers.1." in n} | {"model.layers.0.self_attn.q_proj.weight"}
    assert {n for n, c in configs.items() if c == INT8} == eight
    assert "says None" in selection.skipped["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"])
def test_experts_are_converted_like_linears(kind: str) -> None:
    """The fused experts too, which hold most of the weights."""
    selection = select(on_meta(kind), AoConfig(INT4))
    for layer in (0, 1):
        for name in ("gate_up_proj", "down_proj"):
            assert f"model.layers.{layer}.mlp.experts.{name}" in selection.chosen
    assert not any(".mlp.gate.weight" in name or "router" in name for name in selection.chosen)
    assert not any("bias" in name for name in selection.chosen)


def test_experts_by_rule() -> None:
    rules = FqnToConfig({r"re:.*experts\.down_proj": INT8})
    assert chosen("mixtral", rules) == {f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)}
    rules = FqnToConfig({"re:.*experts": None, "_default": INT4})
    assert not any("experts" in name for name in chosen("mixtral", rules))


def test_unknown_stacks_are_reported() -> None:
    """A large three-dimensional parameter that no rule reached may be experts: it is not passed
    over in silence."""
    model = on_meta("llama")
    model.model.layers[0].mlp.adapters = torch.nn.Parameter(torch.empty(4, 64, 64, device="meta"))
    reason = select(model, AoConfig(INT4)).skipped["model.layers.0.mlp.adapters"]
    assert "three-dimensional in a LlamaMLP; name it in FqnToConfig" in reason
    rules = FqnToConfig({"model.layers.0.mlp.adapters": INT4, "_default": INT4})
    assert "model.layers.0.mlp.adapters" in select(model, AoConfig(rules)).chosen


def test_a_rule_that_matches_nothing() -> None:
    rules = FqnToConfig({"model.layers.0.self_attn.q_prj": INT4, "_default": INT4})
    with pytest.raises(
        ConversionError, match=r"match nothing .*\n.*did you mean 'model.layers.0.self_attn.q_proj'"
    ):
        chosen("llama", rules)
    with pytest.raises(
        ConversionError,
        match="modules_to_not_convert: 'lm_heads' matches nothing in LlamaForCausalLM",
    ):
        chosen("llama", INT4, ["lm_head", "lm_heads"])
    with pytest.raises(ConversionError, match="nothing to convert in LlamaForCausalLM"):
        chosen("llama", INT4, ["model"])


def test_half_a_tie_is_refused() -> None:
    with pytest.raises(
        ConversionError,
        match=r"lm_head.weight: is tied to model.embed_tokens.weight; name all places",
    ):
        chosen("tied", FqnToConfig({"lm_head": INT4}))
    both = FqnToConfig({"lm_head": INT4, "model.embed_tokens": INT4})
    assert chosen("tied", both) == {"lm_head.weight", "model.embed_tokens.weight"}
    unlike = FqnToConfig({"lm_head": INT4, "model.embed_tokens": INT8})
    with pytest.raises(ConversionError, match="different configs"):
        chosen("tied", unlike)
    pattern = FqnToConfig({"re:.*embed_tokens": INT4, "_default": INT4})
    assert (
        "is tied" in select(on_meta("tied"), AoConfig(pattern)).skipped["model.embed_tokens.weight"]
    )


def test_what_cannot_be_converted_is_refused_before_loading(
    checkpoint: Callable[[str], Path],
) -> None:
    rules = FqnToConfig({"model.norm.weight": INT4, "_default": INT4})
    with pytest.raises(
        ConversionError,
        match=r"1 parameters cannot be converted:\n  model.norm.weight: has shape \(64,\)",
    ):
        load(checkpoint("llama"), rules)


def test_the_report_says_it_all(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("tied"), INT4)
    report = model.quantization_report
    assert quantized_names(model) == ALL
    assert {row.fqn for row in report.skipped} == {"model.embed_tokens.weight", "lm_head.weight"}
    down = report["model.layers.0.mlp.down_proj"]
    assert down.what == "int4 group 32 symmetric" and down.shape == (64, 136)
    assert down.bytes_before == 64 * 136 * 2 and down.bytes_after == 64 * 68 + 64 * 5 * 2
    actual = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert report.bytes_after == actual
