"""A small Llama trained on real text with each optimizer, from the same seed on the same batches.

    python benchmarks/train_llama.py                     # 34e6 parameters on a GPU, 1e6 on a CPU
    python benchmarks/train_llama.py --text FILE --sides "torch AdamW,AdamW4bit" --seeds 0,1
    python benchmarks/train_llama.py --picture docs/pictures/optimizers.png    # from the last rows

Compared is the loss on text that was not trained on, the mean over the last `--average` evaluations
of one run. float32 weights compute in bfloat16 (autocast) on a GPU; sides named bf16 have bfloat16
weights. Defaults of the optimizers but for lr and weight_decay; warm-up, then a cosine to a tenth.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
from llama import Llama, Shape
from text import read, tokens
from torch import Tensor

import ao_optim

PRESETS: dict[str, dict[str, Any]] = {
    "cuda": {
        "shape": Shape(width=512, layers=8, heads=8, kv_heads=8, hidden=1408, vocabulary=8192),
        "batch": 32,
        "length": 512,
        "steps": 400,
        "megabytes": 16.0,
    },
    "cpu": {
        "shape": Shape(width=128, layers=2, heads=4, kv_heads=4, hidden=352, vocabulary=2048),
        "batch": 8,
        "length": 128,
        "steps": 200,
        "megabytes": 2.0,
    },
}
Make = Callable[[Llama, dict[str, Any]], list[torch.optim.Optimizer]]


def ours(name: str, **more: Any) -> Make:
    return lambda model, options: [getattr(ao_optim, name)(model.parameters(), **options, **more)]


def torchs(model: Llama, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), **options)]


def muon(kind: Any, rest: Any, **more: Any) -> Make:
    """Matrices of the blocks to Muon, with the steps of AdamW's size; the rest to AdamW."""

    def make(model: Llama, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
        hidden = [p for p in model.stack.parameters() if p.ndim == 2]
        known = set(hidden)
        others = [p for p in model.parameters() if p not in known]
        steps = {"adjust_lr_fn": "match_rms_adamw", **options, **more}
        return [kind(hidden, **steps), rest(others, **options)]

    return make


SIDES: dict[str, tuple[Make, torch.dtype]] = {
    "torch AdamW": (torchs, torch.float32),
    "AdamW": (ours("AdamW"), torch.float32),
    "AdamW8bit": (ours("AdamW8bit"), torch.float32),
    "AdamWFp8": (ours("AdamWFp8"), torch.float32),
    "AdamW4bit": (ours("AdamW4bit"), torch.float32),
    "bf16 AdamW8bit nearest": (ours("AdamW8bit"), torch.bfloat16),
    "bf16 AdamW8bit stochastic": (ours("AdamW8bit", bf16_stochastic_round=True), torch.bfloat16),
    "AdamW4bit 64": (ours("AdamW4bit", block_size=64), torch.float32),
    "torch Muon": (muon(torch.optim.Muon, torch.optim.AdamW), torch.float32),
    "Muon 8bit": (muon(ao_optim.Muon, ao_optim.AdamW8bit), torch.float32),
}
DEFAULT = list(SIDES)[:7]
REFERENCE = "torch AdamW"
# Percent of the reference's loss; Muon is compared with torch's
BARS = {"AdamW": 0.5, "AdamW8bit": 0.5, "AdamWFp8": 0.5, "AdamW4bit": 1.0, "Muon 8bit": 0.5}


class Data:
    """Batches of windows: the last 5 % of the text is held out."""

    def __init__(self, stream: Tensor, options: argparse.Namespace) -> None:
        split = len(stream) * 95 // 100
        self.train, self.held_out = stream[:split], stream[split:]
        self.batch, self.length, self.device = options.batch, options.length, options.device

    def windows(self, part: Tensor, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(part) - self.length - 1, (self.batch,), generator=generator)
        windows = part[starts[:, None] + torch.arange(self.length + 1)]
        return windows.to(self.device, non_blocking=True)


def rate(step: int, options: argparse.Namespace) -> float:
    """The learning rate's share of its highest."""
    if step < options.warm:
        return (step + 1) / options.warm
    left = (step - options.warm) / max(options.steps - options.warm, 1)
    return 0.1 + 0.45 * (1 + float(torch.cos(torch.tensor(left * torch.pi))))


def trained(side: str, data: Data, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Loss curves, and milliseconds of `step()` alone and of a whole step."""
    make, dtype = SIDES[side]
    torch.manual_seed(seed)
    model = Llama(options.shape).to(options.device, dtype)
    optimizers = make(model, {"lr": options.lr, "weight_decay": options.decay})
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: rate(step, options))
        for each in optimizers
    ]
    mixed = options.device == "cuda" and dtype == torch.float32
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=mixed)
    batches = torch.Generator().manual_seed(seed)
    evaluations = [data.windows(data.held_out, torch.Generator().manual_seed(n)) for n in range(8)]
    losses, held_out, start, in_step = [], [], time.perf_counter(), 0.0
    for step in range(options.steps):
        with autocast:
            loss = model(data.windows(data.train, batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if options.time_steps:
            wait(options.device)
            before = time.perf_counter()
        for optimizer in optimizers:
            optimizer.step()
        if options.time_steps:
            wait(options.device)
            in_step += time.perf_counter() - before
        for schedule in schedules:
            schedule.step()
        model.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            with torch.no_grad(), autocast:
                mean = torch.stack([model(batch) for batch in evaluations]).mean()
            held_out.append((step + 1, mean.item()))
    wait(options.device)
    took = time.perf_counter() - start
    curve = torch.stack(losses).float().cpu()
    n = max(1, len(curve) // 100)
    return {
        "side": side,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": sum(
            x.nbytes for each in optimizers for r in each.state.values() for x in r.values()
        ),
        "loss": sum(value for _, value in held_out[-options.average :]) / options.average,
        "held_out": [(step, round(value, 5)) for step, value in held_out],
        "train": [round(x, 4) for x in curve[: len(curve) // n * n].view(-1, n).mean(1).tolist()],
        "ms": took / options.steps * 1e3,
        "ms_step": in_step / options.steps * 1e3,
    }


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(found: list[dict[str, Any]]) -> None:
    """Adds each side's difference from the reference of its seed, in percent, and prints all."""
    losses = {(row["side"], row["seed"]): row["loss"] for row in found}
    lines = []
    for row in found:
        base = losses.get(("torch Muon" if "Muon" in row["side"] else REFERENCE, row["seed"]))
        if base is not None:
            row["percent"] = 100 * (row["loss"] / base - 1)
        bar = BARS.get(row["side"])
        bars = {} if bar is None or "percent" not in row else {"bar": bar}
        row |= bars
        lines.append(
            {
                "optimizer": row["side"],
                "seed": str(row["seed"]),
                "held-out loss": f"{row['loss']:.4f}",
                "against torch": f"{row['percent']:+.2f} %" if "percent" in row else "",
                "bar": f"{bar} %" if bars else "",
                "state bytes": f"{row['state_bytes'] / row['parameters']:.2f}",
                "ms": f"{row['ms']:.1f}",
                "ms of step()": f"{row['ms_step']:.1f}",
            }
        )
    print(rows.table(lines))


def picture(path: str, results: Path) -> None:
    """Draw the newest row of each side in a results file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    newest: dict[str, dict[str, Any]] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        if row["benchmark"] == "train_llama" and row["seed"] == 0:
            newest[row["side"]] = row
    date = max(row["date"] for row in newest.values())
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, row in newest.items():
        if row["date"] != date:
            continue
        side = 1 if name.startswith("bf16") else 0
        steps, values = zip(*row["held_out"], strict=True)
        for axis in axes if name == REFERENCE else [axes[side]]:
            style = {"color": "black", "linewidth": 2.5} if name == REFERENCE else {}
            axis.plot(steps, values, label=f"{name}: {row['loss']:.3f}", **style)
    for axis, title in zip(axes, ("float32 weights", "bfloat16 weights"), strict=True):
        axis.set(title=title, xlabel="step", ylabel="loss on held-out text", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    n = newest[REFERENCE]["parameters"] / 1e6
    figure.suptitle(f"A Llama with {n:.0f} million parameters, same seed and batches")
    figure.savefig(path, dpi=110)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sides", help=", ".join(SIDES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--text", help="a file of text; the default is on every machine")
    parser.add_argument("--preset", default=device, choices=PRESETS)
    for name, kind in (("steps", int), ("batch", int), ("length", int), ("megabytes", float)):
        parser.add_argument(f"--{name}", type=kind, help="instead of the preset's")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--warm", type=int, default=40, help="steps until the highest rate")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--average", type=int, default=1, help="last evaluations that are averaged")
    parser.add_argument("--time-steps", action="store_true", help="time step() alone, too")
    parser.add_argument("--no-record", dest="record", action="store_false")
    parser.add_argument("--picture", help="only draw the newest results of this machine")
    parser.add_argument("--results", type=Path, help="for --picture: another results file")
    options = parser.parse_args()
    options.device = device
    if options.picture:
        picture(options.picture, options.results or rows.path(device))
        return
    for name, value in PRESETS[options.preset].items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    start = time.perf_counter()
    stream = tokens(read(options.text, options.megabytes), options.shape.vocabulary)
    print(f"{len(stream) / 1e6:.2f}e6 tokens in {time.perf_counter() - start:.1f} s", flush=True)
    data, found = Data(stream, options), []
    for seed in map(int, options.seeds.split(",")):
        for side in options.sides.split(",") if options.sides else DEFAULT:
            found.append(trained(side.strip(), data, options, seed))
            row = found[-1]
            print(f"{side}: {row['loss']:.4f}, {row['ms']:.1f} ms a step", flush=True)
    report(found)
    if options.record:
        names = ("preset", "steps", "batch", "length", "lr", "decay", "warm")
        settings = {name: getattr(options, name) for name in names}
        print(rows.append("train_llama", found, device=device, **settings))


if __name__ == "__main__":
    main()
