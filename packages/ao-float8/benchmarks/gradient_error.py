"""What each recipe does to one gradient of a trained model, emulated, so on a CPU too.

    python packages/ao-float8/benchmarks/gradient_error.py --model FOLDER [--text FILE ...]

Compared with the gradient in float32, of the matrices of the blocks: |g - g32| / |g32|, and the
share of g32 that g has, <g, g32> / <g32, g32>, which is 1 where errors have no direction. FOLDER is
a causal language model of Transformers; the default text is Python's standard library.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ao_float8 import Float8LinearConfig, convert_to_float8_training

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise")


def gradient(model: nn.Module, tokens: Tensor, *, autocast: bool) -> tuple[float, Tensor]:
    """The loss, and the gradients of all matrices of the blocks in one vector."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    matrices = [p for name, p in model.named_parameters() if "layers." in name and p.dim() == 2]
    return loss.item(), torch.cat([p.grad.float().flatten() for p in matrices])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", nargs="*", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    files = args.text or sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:20]
    text = "".join(path.read_text() for path in files)
    ids = AutoTokenizer.from_pretrained(args.model)(text, return_tensors="pt").input_ids[0]
    tokens = ids[: args.batch * args.length].view(args.batch, args.length)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    base, exact = gradient(copy.deepcopy(model), tokens, autocast=False)
    print(f"{'float32':20} loss {base:.5f}")
    for recipe in ("bfloat16", *RECIPES):
        trained = copy.deepcopy(model)
        if recipe != "bfloat16":
            config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=True)
            convert_to_float8_training(
                trained, config=config, module_filter_fn=lambda module, name: "layers." in name
            )
        loss, g = gradient(trained, tokens, autocast=True)
        error, share = (g - exact).norm() / exact.norm(), g @ exact / (exact @ exact)
        print(
            f"{recipe:20} loss {loss:.5f} ({100 * (loss / base - 1):+.3f} %), gradient: error"
            f" {error:.4f}, share {share:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
