"""Blocks of Llama-3-8B, forward and backward: bfloat16, every recipe, and torchao's where it is
installed, without and with torch.compile.

    python packages/ao-float8/benchmarks/bench_llama_blocks.py

Four blocks, 2 x 4096 tokens. Sides run in turn, backwards in every second round; a side's figure is
the median of the rounds, and its ratio is to bfloat16 of the same mode and run. Before it is timed,
the output and the gradient of the input of a side must be near those of bfloat16. Weights are cast
in every pass, except by the sides named "step", which find them cast by an earlier pass, as all
micro-batches of a step but the first do; sides named "recast" save inputs and weights as they are,
and cast them again in backward. Peak memory counts the side's own weights, codes that it
keeps, and what a pass allocates. Ours are compiled with `ao_float8.compile_options()`, except by
the sides named "saved", with `compile_options(recompute=False)`, and "plain", without options.

The last table says what the kernels of one pass were, by their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[3]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "packages/ao-float8/examples")]

from llama import SHAPES, Block, Shape, turns  # noqa: E402
from measure import record, table  # noqa: E402

from ao_float8 import (  # noqa: E402
    Float8LinearConfig,
    compile_options,
    convert_to_float8_training,
)
from ao_float8.linear import Float8Linear  # noqa: E402

RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise")
TORCHAO = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
KINDS = {  # of kernels, by their names; the first that matches
    # torchao's have other names without a compiler
    "casts": r"quantize|_peaks|_scales|_amax|abs|casts::",
    "attention": r"flash|attention|fmha|sdpa",
    "products": r"gemm|nvjet|cutlass|xmma|sm90_|cublas|matmul|_scaled_mm",
    "rest": r"",
}


class Stack(nn.Module):
    """The blocks; each is compiled for itself, which compiles one."""

    def __init__(self, shape: Shape, state: dict[str, Tensor] | None, device: str) -> None:
        super().__init__()
        with torch.device(device):
            self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers)).bfloat16()
        if state is not None:
            self.load_state_dict(state)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, cos, sin)
        return x


def ours(recipe: str, cache: str, emulate: bool) -> Callable[[nn.Module], object]:
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe),
        weight_cache={"recast": "off", "plain": "pass", "saved": "pass"}.get(cache, cache),
        recompute_casts=cache == "recast",
        emulate=emulate,
    )
    return lambda model: convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: True
    )


def torchaos(recipe: str) -> Callable[[nn.Module], object]:
    from torchao.float8 import Float8LinearConfig as Config
    from torchao.float8 import convert_to_float8_training as convert

    return lambda model: convert(model, config=Config.from_recipe_name(recipe))


def converters(args: argparse.Namespace) -> dict[str, Callable[[nn.Module], object]]:
    found: dict[str, Callable[[nn.Module], object]] = {"bf16": lambda model: None}
    for name in args.sides:
        recipe, _, cache = name.partition(":")
        found[name] = ours(recipe, cache or "pass", args.device == "cpu")
    if args.no_torchao:
        return found
    try:
        import torchao  # noqa: F401
    except ImportError as error:
        print(f"torchao is left out: {error}")
        return found
    return found | {f"torchao {r}": torchaos(r) for r in TORCHAO if r in args.sides}


def compile_blocks(model: Stack, name: str) -> None:
    """One compiled function for all blocks of a side, with code of its own: the compiler keeps what
    it made by code, and sides would push each other out."""
    forward = Block.forward
    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, forward.__name__)
    plain = name == "bf16" or name.startswith("torchao") or name.endswith(":plain")
    options = None if plain else compile_options(recompute=not name.endswith(":saved"))
    compiled = torch.compile(own, fullgraph=not name.startswith("torchao"), options=options)
    for block in model.blocks:
        block.forward = types.MethodType(compiled, block)


class Side:
    """A stack with its inputs; `run()` is a forward and a backward pass."""

    def __init__(self, model: Stack, inputs: tuple[Tensor, ...], dy: Tensor) -> None:
        self.model, self.inputs, self.dy = model, inputs, dy

    def run(self) -> tuple[Tensor, Tensor]:
        x, *turn = self.inputs
        x = x.detach().requires_grad_()
        y = self.model(x, *turn)
        y.backward(self.dy)
        self.model.zero_grad(set_to_none=True)
        return y, x.grad

    def milliseconds(self, passes: int) -> float:
        if not self.dy.is_cuda:
            start = time.perf_counter()
            self.run()
            return 1e3 * (time.perf_counter() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(passes):
            self.run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / passes

    def peak_gb(self) -> float:
        if not self.dy.is_cuda:
            return 0.0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.run()
        own = sum(p.nbytes for p in self.model.parameters())
        layers = [m for m in self.model.modules() if isinstance(m, Float8Linear)]
        own += sum(layer._weight_codes.nbytes for layer in layers)
        return (own + torch.cuda.max_memory_allocated() - before) / 1e9

    def kernels(self) -> dict[str, float]:
        """Milliseconds of the kernels of one pass, by kind."""
        if not self.dy.is_cuda:
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.run()
            torch.cuda.synchronize()
        found = dict.fromkeys(KINDS, 0.0)
        for event in profile.key_averages():
            kind = next(k for k, p in KINDS.items() if re.search(p, event.key, re.IGNORECASE))
            found[kind] += event.self_device_time_total / 1e3
        return found


def near(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], name: str) -> None:
    for what, one, other in zip(("output", "gradient"), found, wanted, strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm()).item()
        print(f"  {name}: {what} differs by {error:.4f} of its norm")
        assert error < 0.2, f"{name}: the {what} is not that of bfloat16"


def measured(mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    shape = dataclasses.replace(SHAPES[args.shape], layers=args.layers)
    torch.manual_seed(0)
    state = Stack(shape, None, args.device).state_dict()
    sides: dict[str, Side] = {}
    options = {"device": args.device, "dtype": torch.bfloat16}
    x = torch.randn(args.batch, args.tokens, shape.width, **options)
    dy = torch.randn_like(x)
    turn = turns(args.tokens, shape.width // shape.heads, x.device, torch.bfloat16)
    wanted = None
    for name, convert in converters(args).items():
        try:
            model = Stack(shape, state, args.device)
            convert(model)
            if mode == "compiled":
                compile_blocks(model, name)
            side = Side(model, (x, *turn), dy)
            start = time.perf_counter()
            found = side.run()
            seconds = time.perf_counter() - start
            if wanted is None:
                wanted = found
            print(f"{mode} {name}: first pass {seconds:.1f} s", flush=True)
            near(found, wanted, name)
            sides[name] = side
        except Exception as error:
            if not args.keep_going:
                raise
            print(f"{mode} {name} is left out: {error!r}"[:600], flush=True)
            model = side = None  # type: ignore[assignment]
    for _ in range(2):
        for side in sides.values():
            side.run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(args.rounds):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            times[name].append(sides[name].milliseconds(args.passes))
    rows: list[dict[str, Any]] = []
    for name in sides:
        ms = statistics.median(times[name])
        ratio = statistics.median(times["bf16"]) / ms
        low, high = min(times[name]), max(times[name])
        rows.append(
            {"mode": mode, "side": name, "ms": ms, "low": low, "high": high, "ratio": ratio}
        )
    print(table([timing(row) for row in rows]), flush=True)  # whatever becomes of what follows
    for row in rows:
        row["peak_gb"] = sides[row["side"]].peak_gb()
    for row in rows:
        row["kernels_ms"] = sides[row["side"]].kernels()
    return rows


def timing(row: dict[str, Any]) -> dict[str, str]:
    return {
        "mode, side": f"{row['mode']} {row['side']}",
        "ms": f"{row['ms']:.2f}",
        "low to high": f"{row['low']:.1f} to {row['high']:.1f}",
        "x bf16": f"{row['ratio']:.3f}",
    }


def whole(row: dict[str, Any]) -> dict[str, str]:
    kinds = {kind: f"{ms:.1f}" for kind, ms in row["kernels_ms"].items()}
    return {**timing(row), "peak GB": f"{row['peak_gb']:.2f}", **kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b-block")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=4, help="passes a side runs in a round")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument(
        "--sides",
        nargs="+",
        default=[*RECIPES, "tensorwise:step", "tensorwise:recast", "rowwise:recast"],
        help="recipe, or recipe:cache, recipe:recast, recipe:saved, recipe:plain",
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--keep-going", action="store_true", help="leave out sides that fail")
    parser.add_argument("--no-torchao", action="store_true")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    settings = {k: v for k, v in vars(args).items() if k not in ("no_record", "device")}
    rows = []
    for mode in args.modes:
        found = measured(mode, args)
        if not args.no_record:
            record("float8_llama_blocks", found, device=args.device, **settings)
        rows += found
    print()
    print(table([whole(row) for row in rows]))


if __name__ == "__main__":
    main()
