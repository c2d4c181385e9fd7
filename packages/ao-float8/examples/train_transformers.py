"""Train a Transformers model in float8 with its Trainer.

    python train_transformers.py                        a small Llama from scratch, on a GPU
    python train_transformers.py --model path/or/name   continue with a model of yours

Only one line is ours. The checkpoint that the Trainer writes is an ordinary one.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from train_llama import corpus
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from ao_float8 import Float8LinearConfig, convert_to_float8_training


class Bytes(torch.utils.data.Dataset):
    """Pieces of text, a token a byte."""

    def __init__(self, context: int) -> None:
        data, _ = corpus([])
        self.pieces = data[: len(data) // context * context].view(-1, context)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.pieces[index].long()
        return {"input_ids": tokens, "labels": tokens}


def small_llama(width: int, layers: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
    )
    return LlamaForCausalLM(config)


def train(args: argparse.Namespace) -> tuple[PreTrainedModel, list[dict]]:
    torch.manual_seed(0)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    else:
        model = small_llama(args.width, args.layers)
    config = Float8LinearConfig.from_recipe_name(args.recipe)
    report = convert_to_float8_training(
        model,
        config=dataclasses.replace(config, emulate=args.emulate),
        tokens=args.batch * args.context,
        module_filter_fn=(lambda module, name: name != "lm_head") if args.every_layer else None,
    )
    print(report)
    trainer = Trainer(
        model=model,
        train_dataset=Bytes(args.context),
        args=TrainingArguments(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            gradient_accumulation_steps=2,
            gradient_checkpointing=args.checkpointing,
            learning_rate=1e-3,
            bf16=True,
            use_cpu=args.emulate,
            logging_steps=max(args.steps // 10, 1),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=not args.emulate,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)
    return model, trainer.state.log_history


def main(arguments: list[str] | None = None) -> tuple[PreTrainedModel, list[dict]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="path or name of a model of Transformers")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--recipe", default="tensorwise")
    parser.add_argument("--every-layer", action="store_true", help="not only those that gain")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", default="trained")
    parser.add_argument("--emulate", action="store_true", help="on a CPU, slowly")
    return train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
