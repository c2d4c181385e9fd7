"""Train a language model in bfloat16 and in float8, side by side: a plain loop, one GPU.

    python train_llama.py                                        117 M parameters, every recipe
    python train_llama.py --shape tiny --steps 20 --device cpu

All runs start from the same weights and see the same text in the same order. Weights and AdamW's
state are float32, products bfloat16 by autocast; a recipe changes the linear layers of the blocks
and nothing else. The text is what every such machine has: the sources of Python's standard library
and of PyTorch with their documentation, as bytes; `--text` takes files of your own. Losses of text
that was held out are compared at the end. "bf16 again" is bfloat16 from weights that differ in
their last bits: what no more than another rounding does to a loss.

`--out` keeps the curves, `--draw curves.json ... picture.png` draws them. Runs do not depend on
each other, so that several GPUs can have some of them each, and a file of curves.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sysconfig
import time
from pathlib import Path

import torch
from llama import SHAPES, Llama
from torch import Tensor

from ao_float8 import Float8LinearConfig, convert_to_float8_training

EXACT, AGAIN = "bf16", "bf16 again"
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8", "int8")
HELD_OUT = 16  # every 16th piece of text is not trained on
PIECE = 1 << 16


def corpus(paths: list[str]) -> tuple[Tensor, Tensor]:
    """Bytes to train on, and bytes that are held out."""
    if paths:
        text = b"\n".join(Path(path).read_bytes() for path in paths)
    else:
        files = []
        for folder in (Path(sysconfig.get_paths()["stdlib"]), Path(torch.__file__).parent):
            found = sorted(folder.glob("**/*.py"))
            files += [path for path in found if not _is_apart(path.relative_to(folder))]
        text = b"\n".join(path.read_bytes() for path in files)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    pieces = data.split(PIECE)
    kept = [p for i, p in enumerate(pieces) if i % HELD_OUT]
    return torch.cat(kept or [data]), torch.cat(pieces[::HELD_OUT])


def _is_apart(path: Path) -> bool:
    """Installed packages, and tests, which are tables of data here and there."""
    return bool({"site-packages", "dist-packages", "test", "tests"} & set(path.parts))


def batch(data: Tensor, args: argparse.Namespace, seed: int) -> Tensor:
    """(B, T + 1) tokens from random places."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - args.context - 1, (args.batch,), generator=generator)
    found = data[starts[:, None] + torch.arange(args.context + 1)]
    return found.to(args.device, torch.long, non_blocking=True)


def converted(model: Llama, recipe: str, emulate: bool) -> None:
    """All linear layers of the blocks, whether they gain by it or not; the head stays."""
    config = Float8LinearConfig.from_recipe_name(recipe)
    report = convert_to_float8_training(
        model,
        config=dataclasses.replace(config, emulate=emulate),
        module_filter_fn=lambda module, name: name.startswith("blocks"),
    )
    assert len(report.converted) == 7 * model.shape.layers


def trained(recipe: str, data: Tensor, held_out: Tensor, args: argparse.Namespace) -> dict:
    """The curve of one run, its loss on held out text, and what a step took."""
    torch.manual_seed(args.seed)
    model = Llama(SHAPES[args.shape]).to(args.device)
    model.initialize()
    if recipe == AGAIN:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1 + 2**-20
    elif recipe != EXACT:
        converted(model, recipe, emulate=args.device == "cpu")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    warm = max(args.steps // 10, 1)

    def rate(step: int) -> float:
        done = (step - warm) / max(args.steps - warm, 1)
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * done)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses, start = [], time.perf_counter()
    for step in range(args.steps):
        if step == warm:
            _wait(args)
            start = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16):
            loss = model.loss(batch(data, args, args.seed * args.steps + step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    _wait(args)
    seconds = (time.perf_counter() - start) / max(args.steps - warm, 1)
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16):
        last = [model.loss(batch(held_out, args, 10**6 + i)) for i in range(args.evaluations)]
    return {
        "recipe": recipe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": torch.stack(losses).tolist(),
        "held_out": torch.stack(last).mean().item(),
        "ms": 1e3 * seconds,
    }


def _wait(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def draw(runs: list[dict], path: str) -> None:
    """Curves above, differences to the first run's below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, figsize=(9, 7), sharex=True, height_ratios=(3, 2))
    exact = smooth(runs[0]["losses"])
    for run in runs:
        curve = smooth(run["losses"])
        above.plot(curve, label=f"{run['recipe']}: {run['held_out']:.4f} held out", linewidth=1)
        below.plot([100 * (a / b - 1) for a, b in zip(curve, exact, strict=True)], linewidth=1)
    above.set_ylabel("loss, nats a byte")
    above.set_yscale("log")
    above.legend()
    below.set_ylabel("% over bf16")
    below.set_xlabel("step")
    below.set_ylim(-3, 3)
    below.grid(alpha=0.3)
    figure.suptitle(f"{runs[0]['parameters'] / 1e6:.0f} M parameters, same seed and text")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def smooth(losses: list[float], width: int = 15) -> list[float]:
    """Mean of the last `width` steps."""
    return [
        sum(losses[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(losses))
    ]


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", default=(EXACT, AGAIN, *RECIPES))
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--evaluations", type=int, default=16, help="batches of held out text")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--text", nargs="*", default=[], help="files, instead of Python's sources")
    parser.add_argument("--out", help="write the curves to this file")
    parser.add_argument("--draw", nargs="+", metavar="FILE", help="curves, and a picture")
    args = parser.parse_args(arguments)
    if args.draw:
        *curves, picture = args.draw
        runs = [run for path in curves for run in json.loads(Path(path).read_text())]
        draw(sorted(runs, key=lambda run: run["recipe"] != EXACT), picture)
        return runs
    data, held_out = corpus(args.text)
    print(f"{len(data) / 1e6:.1f} MB of text, {len(held_out) / 1e6:.1f} MB held out")
    runs = []
    for recipe in args.recipes:
        runs.append(trained(recipe, data, held_out, args))
        run, exact = runs[-1], runs[0]
        print(
            f"{recipe:20} held out {run['held_out']:.4f}"
            f" ({100 * (run['held_out'] / exact['held_out'] - 1):+.2f} %), last"
            f" {smooth(run['losses'])[-1]:.4f}, {run['ms']:.1f} ms a step,"
            f" {exact['ms'] / run['ms']:.2f} x {exact['recipe']}",
            flush=True,
        )
        if args.out:
            Path(args.out).write_text(json.dumps(runs))
    return runs


if __name__ == "__main__":
    main()
