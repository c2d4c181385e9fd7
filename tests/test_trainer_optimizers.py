"""Optimizers of ao-optim in Transformers' Trainer, by `optimizer_cls_and_kwargs`: as the README of
ao-optim shows. A run that is stopped and resumed from its checkpoint ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from ao_optim import AdamW4bit, AdamW8bit, CPUOffloadOptimizer, StateOffloadOptimizer

CHOICES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW8bit": (AdamW8bit, {"lr": 1e-3}),
    "AdamW4bit": (AdamW4bit, {"lr": 1e-3, "betas": (0.9, 0.95)}),
    "offload": (
        CPUOffloadOptimizer,
        {"optimizer_class": AdamW8bit, "lr": 1e-3},
    ),
    "state offload": (StateOffloadOptimizer, {"optimizer_class": AdamW8bit, "lr": 1e-3}),
}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


class Sentences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Counting sequences, which a model can learn."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(16) * (1 + index % 3) + index) % 128
        return {"input_ids": tokens, "labels": tokens}


def trainer(folder: Path, name: str) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=8,
        save_steps=4,
        logging_steps=4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=1,
    )
    return Trainer(
        model=model(),
        args=arguments,
        train_dataset=Sentences(),
        optimizer_cls_and_kwargs=CHOICES[name],
    )


@pytest.mark.filterwarnings("ignore")  # of Transformers and accelerate
@pytest.mark.parametrize("name", CHOICES)
def test_training_and_resuming(name: str, tmp_path: Path) -> None:
    straight = trainer(tmp_path / "straight", name)
    result = straight.train()
    assert result.global_step == 8
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    groups = straight.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups[0]["lr"] < 1e-3  # the Trainer's schedule
    resumed = trainer(tmp_path / "resumed", name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    assert resumed.state.global_step == 8
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
