"""Models that are no causal language models."""

from pathlib import Path

import pytest
import torch
from tiny_models import (
    CONFIGS,
    FORMATS,
    INT4,
    assert_same_state,
    difference,
    quantized_names,
    randomize,
    token_ids,
)
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from ao_core.tensor import QTensor
from ao_hf import AoConfig


def output(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(token_ids())[0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    model = AutoModelForSequenceClassification.from_config(CONFIGS["bert"](), dtype=torch.float32)
    randomize(model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_classifier(name: str, bert: Path, tmp_path: Path) -> None:
    """All linears, the classifier too; biases and embeddings stay."""
    config = AoConfig(FORMATS[name])
    model = AutoModelForSequenceClassification.from_pretrained(bert, quantization_config=config)
    names = quantized_names(model)
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= names
    assert len(names) == 2 * 6 + 2 and not any("embeddings" in name for name in names)
    exact = AutoModelForSequenceClassification.from_pretrained(bert)
    error = difference(output(exact.bert), output(model.bert))
    assert error < {"int3": 0.6, "int8": 0.03}.get(name, 0.3)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same_state(model, reloaded)
    assert torch.equal(output(model), output(reloaded))


def test_base_model_of_a_classifier(bert: Path, tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(bert, quantization_config=AoConfig(INT4))
    assert isinstance(base.pooler.dense.weight, QTensor)
    base.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same_state(base, again.bert)
    assert not isinstance(again.classifier.weight, QTensor)


@pytest.mark.parametrize("include_embedding", [False, True])
def test_masked_language_model(include_embedding: bool, bert: Path, tmp_path: Path) -> None:
    """Its decoder is tied to the word embeddings, and its bias to another one."""
    config = AoConfig(INT4, include_embedding=include_embedding)
    model = AutoModelForMaskedLM.from_pretrained(bert, quantization_config=config)
    decoder, embeddings = model.cls.predictions.decoder, model.bert.embeddings
    assert decoder.weight is embeddings.word_embeddings.weight
    assert isinstance(decoder.weight, QTensor) is include_embedding
    assert not isinstance(embeddings.position_embeddings.weight, QTensor)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert reloaded.cls.predictions.decoder.weight is reloaded.get_input_embeddings().weight
    assert_same_state(model, reloaded)
    assert torch.equal(output(model), output(reloaded))
