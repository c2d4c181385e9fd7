"""Small random models of several architectures, and the formats that they are quantized to."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from ao_core.config import AOBaseConfig
from ao_core.granularity import PerBlock, PerGroup
from ao_hf import AoConfig
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
)

# The groups do not divide the 136 features of down_proj: the last one is shorter.
FORMATS: dict[str, AOBaseConfig] = {
    "int8": Int8WeightOnlyConfig(),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "int4": Int4WeightOnlyConfig(group_size=32),
    "int4 hqq": Int4WeightOnlyConfig(group_size=32, algorithm="hqq"),
    "8da4w": Int8DynamicActivationInt4WeightConfig(),
    "int3": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerGroup(32)),
    "8da6w": Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int6, weight_mapping_type="asymmetric"
    ),
    "int8 static": Int8StaticActivationInt8WeightConfig(activation_range=6.0),
    "float8": Float8WeightOnlyConfig(),
    "float8 e5m2": Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, granularity=PerGroup(32)),
    "float8 dynamic": Float8DynamicActivationFloat8WeightConfig(),
    "float8 block": Float8DynamicActivationFloat8WeightConfig(granularity=PerBlock((128, 128))),
    "float8 static": Float8StaticActivationFloat8WeightConfig(activation_range=6.0),
    "float8 int4": Float8DynamicActivationInt4WeightConfig(group_size=32),
}
INT4 = FORMATS["int4"]
INT8 = FORMATS["int8"]

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 136,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: Qwen2MoeConfig(**SIZES, **MOE, shared_expert_intermediate_size=72),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, **MOE, head_dim=16),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=16, rope_parameters=ROPE
    ),
    "bert": lambda: BertConfig(**{k: v for k, v in SIZES.items() if "key_value" not in k}),
}


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give every parameter but the norms' reproducible values that make logits differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.08)
    return model.eval()


def causal_lm(kind: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    return randomize(AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=dtype))


def load(folder: Path, config: AOBaseConfig | AoConfig | None = None, **kwargs: Any) -> Any:
    """A causal language model, quantized while loading when a config is given."""
    if config is not None:
        kwargs["quantization_config"] = config if isinstance(config, AoConfig) else AoConfig(config)
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)


def token_ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(
        3, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(7)
    )


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(token_ids()).logits


def difference(exact: Tensor, got: Tensor) -> float:
    """Relative error."""
    exact, got = exact.double(), got.double()
    return float((exact - got).norm() / exact.norm())


def assert_same_state(a: PreTrainedModel, b: PreTrainedModel) -> None:
    """The same names in the same order, the same formats, the same bits."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    for name, t in ours.items():
        assert type(t) is type(theirs[name]) and t.dtype == theirs[name].dtype, name
        assert torch.equal(t, theirs[name]), name


def quantized_names(model: PreTrainedModel) -> set[str]:
    return {row.fqn for row in model.quantization_report.rows if row.status != "skipped"}
