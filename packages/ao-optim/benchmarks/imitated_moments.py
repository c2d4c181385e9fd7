"""Which half of a 4-bit state costs loss, and what other roundings would: imitations of AdamW4bit
in plain torch, which keep both moments in float32 and round them after each step.

    python benchmarks/imitated_moments.py --steps 400 --seeds 0,1
    python benchmarks/imitated_moments.py --preset cpu --steps 20 --sides "AdamW4bit,both dithered"

The model, text and schedule are those of train_llama.py. "both dithered" is AdamW4bit itself in
float32: it tells whether the imitation can be trusted. "both", "first" and "second" go to the
nearest; "stochastic" takes random bits.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import train_llama
from text import read, tokens
from torch import Tensor

from ao_core.moments import (
    code_values,
    dequantize_moment,
    dither_starts,
    quantize_moment,
)
from ao_optim.record import SMALL

BLOCK = 128
DEEP = 1.6 ** torch.arange(-15, 1.0)  # values of exp_avg_sq over a wider range


def nearest(x: Tensor, *, signed: bool, step: int) -> Tensor:
    """As the kernels round without a dither."""
    codes, scale = quantize_moment(x, bits=4, signed=signed, block_size=BLOCK)
    blocks = dequantize_moment(codes, scale, bits=4, signed=signed, block_size=BLOCK)
    return blocks.view(-1)[: x.numel()].view_as(x)


def stochastic(x: Tensor, *, signed: bool, step: int, values: Tensor | None = None) -> Tensor:
    """To one of the two values beside x, so that the mean is x between the first and the last."""
    known = torch.unique(code_values(4, signed=signed) if values is None else values).to(x.device)
    blocks = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / known[-1]).clamp_min(2.0**-126)
    y = (blocks / scale).clamp(known[0].item(), known[-1].item())
    above = torch.searchsorted(known, y, right=True).clamp(1, len(known) - 1)
    low, high = known[above - 1], known[above]
    upper = torch.rand_like(y) < (y - low) / (high - low)
    rounded = torch.where(upper, high, low) * scale
    return rounded.view(-1)[: x.numel()].view_as(x)


class Imitation(torch.optim.Optimizer):
    """AdamW, whose moments go through `first` and `second` after each step; None leaves one."""

    def __init__(self, params: Any, lr: float, weight_decay: float, first: Any, second: Any):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.first, self.second, self.steps = first, second, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        beta1, beta2 = 0.9, 0.999
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                m = state["m"].lerp_(p.grad, 1 - beta1)
                v = state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                root = (v.sqrt() * (1 - beta2**self.steps) ** -0.5).add_(1e-8)
                p.addcdiv_(m, root, value=-group["lr"] / (1 - beta1**self.steps))
                if p.numel() >= SMALL:
                    state["m"] = self.rounded(self.first, m, signed=True)
                    state["v"] = self.rounded(self.second, v, signed=False)

    def rounded(self, rounding: Any, x: Tensor, *, signed: bool) -> Tensor:
        return x if rounding is None else rounding(x, signed=signed, step=self.steps)


def deep(x: Tensor, *, signed: bool, step: int) -> Tensor:
    return stochastic(x, signed=signed, step=step, values=DEEP)


def powers(x: Tensor, *, signed: bool, step: int) -> Tensor:
    """To powers of two."""
    values = 2.0 ** torch.arange(-6 if signed else -15, 1.0)
    if signed:
        values = torch.cat((-values, torch.zeros(1), values))
    return stochastic(x, signed=signed, step=step, values=values)


def dithered(x: Tensor, *, signed: bool, step: int) -> Tensor:
    """As the kernels do in a step."""
    (dither,) = dither_starts([step], [0])
    options = {"bits": 4, "signed": signed, "block_size": BLOCK}
    codes, scale = quantize_moment(x, dither=dither, **options)
    return dequantize_moment(codes, scale, **options).view(-1)[: x.numel()].view_as(x)


ROUNDINGS = {
    "both": (nearest, nearest),
    "first": (nearest, None),
    "second": (None, nearest),
    "both dithered": (dithered, dithered),
    "first dithered": (dithered, None),
    "second dithered": (None, dithered),
    "both stochastic": (stochastic, stochastic),
    "first stochastic": (stochastic, None),
    "second stochastic": (None, stochastic),
    "first stochastic + second": (stochastic, nearest),
    "first + second stochastic": (nearest, stochastic),
    "first stochastic + deep": (stochastic, deep),
    "first stochastic + powers": (stochastic, powers),
    "powers + second stochastic": (powers, stochastic),
    "powers + deep": (powers, deep),
}


def imitation(first: Any, second: Any) -> train_llama.Make:
    return lambda model, options: [
        Imitation(model.parameters(), **options, first=first, second=second)
    ]


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default=device, choices=train_llama.PRESETS)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--sides", default=",".join(("torch AdamW", "AdamW4bit", *ROUNDINGS)))
    given = parser.parse_args()
    for name, roundings in ROUNDINGS.items():
        train_llama.SIDES[name] = (imitation(*roundings), torch.float32)
    settings = {"lr": 1e-3, "decay": 0.1, "warm": 40, "every": 20, "average": 1}
    options = argparse.Namespace(
        **{**train_llama.PRESETS[given.preset], **settings}, device=device, time_steps=False
    )
    options.steps = given.steps
    stream = tokens(read(None, given.megabytes), options.shape.vocabulary)
    data, base = train_llama.Data(stream, options), {}
    for seed in map(int, given.seeds.split(",")):
        for name in given.sides.split(","):
            start = time.perf_counter()
            loss = train_llama.trained(name.strip(), data, options, seed)["loss"]
            percent = 100 * (loss / base.setdefault(seed, loss) - 1)
            seconds = time.perf_counter() - start
            print(f"{seed} {name:24} {loss:.4f} {percent:+.2f} % {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
