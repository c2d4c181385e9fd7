"""The main job, on a real model: quantize, save, load, generate, and what it costs and gains.

    python3 -m nox -s demo                     everything, about five minutes on two cores
    python3 -m nox -s demo -- --quick          fewer windows and rounds

Every format starts from the bfloat16 checkpoint, is quantized while it loads, saved, loaded again
and compared bit for bit; text, size and perplexity are those of the loaded model. Speeds are
measured at the end, all formats in turn. Writes demo-output/table.md and demo-output/picture.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import models
import speed
import torch
from torch import Tensor, nn

from ao_quant import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
)

OUTPUT = models.ROOT / "demo-output"
QUESTION = "In two sentences: why do leaves turn red in autumn?"
NOTE = """\
This model comes as GGUF Q4_1: its weights already sit on an int4 grid (asymmetric, groups of 32),
so that setting is not shown, and the bf16 model is itself a 4-bit one written as bfloat16."""

FORMATS: dict[str, Any] = {
    "bf16": None,
    "int8 weight-only": Int8WeightOnlyConfig(),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "8da4w g32": Int8DynamicActivationInt4WeightConfig(group_size=32),
    "int4 g128": Int4WeightOnlyConfig(group_size=128),
    "int4 g128 hqq": Int4WeightOnlyConfig(group_size=128, algorithm="hqq"),
    "int4 g64 hqq, int8 embedding": FqnToConfig(
        {
            "model.embed_tokens": Int8WeightOnlyConfig(),  # also the head: the two are tied
            "lm_head": Int8WeightOnlyConfig(),
            r"re:model\.layers\..*_proj": Int4WeightOnlyConfig(group_size=64, algorithm="hqq"),
        }
    ),
}


@dataclass
class Made:
    """One format: the model as it was loaded again, and what was seen on the way."""

    model: nn.Module
    megabytes: float
    seconds: float
    equal: str
    text: str
    perplexity: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer windows and rounds")
    quick = parser.parse_args().quick
    start = time.perf_counter()
    say(f"{measure.machine()['cpu']}, {torch.get_num_threads()} threads; {measure.versions()}")
    folder = models.smollm2()
    tokenizer = models.tokenizer_of(folder)
    windows = models.prose_windows(tokenizer, 4 if quick else 16)
    OUTPUT.mkdir(exist_ok=True)

    made = {}
    for name, config in FORMATS.items():
        made[name] = make(name, config, folder, tokenizer, windows)
    rounds = 1 if quick else 3
    say(f"\nspeed: {rounds} rounds over all formats in turn")
    decode = measure.alternate(sides(speed.decode, made), rounds)
    prefill = measure.alternate(sides(speed.prefill, made), rounds)

    caption = (
        f"SmolLM2-135M-Instruct, {torch.get_num_threads()} threads, plain `generate`; perplexity "
        f"on {len(windows)} windows of {models.WINDOW} tokens of Python's language reference."
    )
    report = "\n\n".join([measure.table(rows(made, decode, prefill)), caption, NOTE])
    (OUTPUT / "table.md").write_text(f"{report}\n")
    picture(made, decode, OUTPUT / "picture.png")
    say(f"\n{report}\n")
    say(
        f"written: {', '.join(str(p.relative_to(models.ROOT)) for p in sorted(OUTPUT.glob('*.*')))}"
    )
    say(f"took {time.perf_counter() - start:.0f} s")
    wrong = [name for name, m in made.items() if m.equal == "no"]
    if wrong:
        say(f"FAILED: not bit-equal after loading: {', '.join(wrong)}")
    return len(wrong)


def minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f}"


def say(text: str) -> None:
    print(text, flush=True)


def sides(function: Callable[[nn.Module], float], made: dict[str, Made]) -> dict[str, Any]:
    return {name: partial(function, each.model) for name, each in made.items()}


def make(name: str, config: Any, folder: Path, tokenizer: Any, windows: list[Tensor]) -> Made:
    say(f"\n{name}")
    saved = OUTPUT / "models" / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(saved, ignore_errors=True)
    start = time.perf_counter()
    model = quantized(folder, config)
    took = time.perf_counter() - start
    if config is None:
        saved, equal = folder, "-"
    else:
        model.save_pretrained(saved)
        first, model = model, models.load(saved)
        equal = "yes" if identical(first, model) else "no"
        say(f"  quantized while loading in {took:.1f} s; saved, loaded again, bit-equal: {equal}")
    size = sum(file.stat().st_size for file in saved.glob("*.safetensors")) / 1e6
    text = answer(model, tokenizer)
    say(f"  {size:.1f} MB; says: {text}")
    value = models.perplexity(model, windows)
    say(f"  perplexity {value:.3f}")
    return Made(model, size, took, equal, text, value)


def quantized(folder: Path, config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    from ao_hf import AoConfig

    options = {} if config is None else {"quantization_config": AoConfig(quant_type=config)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options).eval()


def identical(a: nn.Module, b: nn.Module) -> bool:
    """All parameters and buffers, quantized ones field by field, and the logits of a prompt."""
    ours, theirs = a.state_dict(), b.state_dict()
    ids = speed.prompt(a, 48)
    with torch.inference_mode():
        logits = torch.equal(a(ids).logits, b(ids).logits)
    return logits and list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in ours)


def same(a: Tensor, b: Tensor) -> bool:
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not hasattr(a, "__tensor_flatten__"):
        return torch.equal(a, b)
    fields, _ = a.__tensor_flatten__()
    return all(same(getattr(a, field), getattr(b, field)) for field in fields)


def answer(model: nn.Module, tokenizer: Any) -> str:
    chat = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False, pad_token_id=0)
    told = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(told.split())


def rows(made: dict[str, Made], decode: dict, prefill: dict) -> list[dict[str, str]]:
    base = made["bf16"]
    return [
        {
            "format": name,
            "MB": f"{m.megabytes:.1f}",
            "of bf16": f"{100 * m.megabytes / base.megabytes:.0f}%",
            "perplexity": f"{m.perplexity:.3f}",
            "change": f"{100 * (m.perplexity / base.perplexity - 1):+.2f}%",
            "decode tok/s": f"{decode[name]:.1f}",
            "x bf16": f"{decode[name].median / decode['bf16'].median:.2f}",
            "prefill tok/s": f"{prefill[name]:.0f}",
            "x bf16 ": f"{prefill[name].median / prefill['bf16'].median:.2f}",
            "load s": f"{m.seconds:.1f}",
            "reload equal": m.equal,
        }
        for name, m in made.items()
    ]


def picture(made: dict[str, Made], decode: dict, path: Path) -> None:
    """Size against perplexity, and size against decode speed; one point a format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    points = {
        "perplexity (lower is better)": {name: m.perplexity for name, m in made.items()},
        "decode, tokens/s (higher is better)": {name: s.median for name, s in decode.items()},
    }
    smallest = min(made, key=lambda name: made[name].megabytes)
    for axes, (label, values) in zip(panels, points.items(), strict=True):
        sides_of = label_sides(values, smallest)
        for name, value in values.items():
            color, left = "0.35" if name == "bf16" else "tab:blue", sides_of[name] == "left"
            axes.plot(made[name].megabytes, value, "o", color=color, markersize=8)
            axes.annotate(
                name,
                (made[name].megabytes, value),
                xytext=(-9 if left else 9, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=9,
                color=color,
            )
        axes.set(xlabel="checkpoint, MB", ylabel=label, xlim=(0, 1.06 * made["bf16"].megabytes))
        axes.margins(y=0.15)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"SmolLM2-135M-Instruct on {torch.get_num_threads()} CPU threads")
    figure.savefig(path, dpi=130)


def label_sides(values: dict[str, float], small: str) -> dict[str, str]:
    """Left of its point for bf16, which is at the right edge, never for the smallest checkpoint,
    which is near the left one; neighbours in height alternate."""
    near = 0.05 * (max(values.values()) - min(values.values()))
    found, last = {"bf16": "left"}, None
    for name in sorted(values, key=lambda name: values[name]):
        if name in found:
            continue
        crowded = last is not None and values[name] - values[last] < near and name != small
        found[name] = "left" if crowded and found[last] == "right" else "right"
        last = name
    return found


if __name__ == "__main__":
    sys.exit(main())
