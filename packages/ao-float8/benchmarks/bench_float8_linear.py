"""One linear layer, forward and backward: bfloat16 and every recipe over M, N and K, for the table
that the profit filter reads.

    python packages/ao-float8/benchmarks/bench_float8_linear.py        the table of this GPU
    python packages/ao-float8/benchmarks/bench_float8_linear.py --sizes 8192 --tokens 8192 \
        --no-table
    python packages/ao-float8/benchmarks/bench_float8_linear.py --check --sizes 768 3072 11008

--check: nothing is written; layers that the filter would convert with its table of this GPU are
timed, at sizes that lie between those of the table, and the slowest are named. Such a layer should
never be slower than bfloat16.

M tokens, N output features, K input features. Times are those of calls without a compiler that
follow each other: where the host is slower than the GPU, its time. Sides run in turn. Weights are
cast in every pass.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import commit, record, table, versions  # noqa: E402

from ao_float8 import Float8Linear, Float8LinearConfig  # noqa: E402
from ao_float8.profit import FORMAT, judge, path_of  # noqa: E402

SIZES = (512, 1024, 2048, 4096, 16384)
TOKENS = (2048, 8192)
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise")


def seconds(module: nn.Module, x: Tensor, dy: Tensor, passes: int) -> float:
    """Of a forward and backward pass, launched one after the other."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(passes):
        module(x).backward(dy)
        module.weight.grad = x.grad = None  # type: ignore[assignment]
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / passes


def results(module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dx and dw."""
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, module.weight], dy)]


def measured(M: int, N: int, K: int, recipes: list[str], rounds: int) -> dict[str, float]:
    """Microseconds of every side, the median of the rounds."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    linear = nn.Linear(K, N, bias=False, **options)
    x = torch.randn(M, K, requires_grad=True, **options)
    dy = torch.randn(M, N, **options)
    sides: dict[str, nn.Module] = {"bf16": linear}
    for name in recipes:
        config = Float8LinearConfig.from_recipe_name(name)
        sides[name] = Float8Linear.from_float(linear, config)
    wanted = results(linear, x, dy)
    for name, side in list(sides.items()):
        error = max(
            ((a - b).norm() / b.norm()).item()
            for a, b in zip(results(side, x, dy), wanted, strict=True)
        )
        if not error < 0.1:
            print(f"{name} at {M} x {N} x {K} is left out: off by {error:.3f}")
            del sides[name]
    passes = {}
    for name, side in sides.items():
        seconds(side, x, dy, 1)
        passes[name] = max(2, min(20, int(2e-3 / seconds(side, x, dy, 1))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides)[:: -1 if index % 2 else 1]:
            found[name].append(seconds(sides[name], x, dy, passes[name]))
    return {name: 1e6 * statistics.median(each) for name, each in found.items()}


def check(args: argparse.Namespace) -> None:
    """The ratios of what the filter converts."""
    found: list[tuple[float, str]] = []
    left = 0
    gpu = torch.device("cuda")
    for M, N, K in itertools.product(args.tokens, args.sizes, args.sizes):
        chosen = []
        for name in args.recipes:
            config = Float8LinearConfig.from_recipe_name(name)
            chosen += [name] if judge(config, N, K, tokens=M, device=gpu).wins else []
        left += len(args.recipes) - len(chosen)
        us = measured(M, N, K, chosen, args.rounds) if chosen else {}
        for name in us.keys() - {"bf16"}:
            found.append((us["bf16"] / us[name], f"{name} {M} x {N} x {K}"))
    found.sort()
    rows = [{"slowest": case, "x bf16": f"{ratio:.2f}"} for ratio, case in found[:12]]
    print(table(rows))
    losing = sum(ratio < 1 for ratio, _ in found)
    print(f"{len(found)} cases are converted, {losing} of them slower; {left} stay in bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-table", action="store_true")
    parser.add_argument("--check", action="store_true", help="time what the filter converts")
    args = parser.parse_args()
    if args.check:
        check(args)
        return
    rows, lines = [], []
    for M, N, K in itertools.product(args.tokens, args.sizes, args.sizes):
        us = measured(M, N, K, list(args.recipes), args.rounds)
        bf16 = us.pop("bf16")
        rows.append({"M": M, "N": N, "K": K, "bf16_us": round(bf16, 1)})
        rows[-1]["us"] = {r: round(us[r], 1) if r in us else None for r in args.recipes}
        cells = {r: f"{bf16 / us[r]:.2f}" if r in us else "" for r in args.recipes}
        lines.append({"M, N, K": f"{M}, {N}, {K}", "bf16 us": f"{bf16:.0f}", **cells})
    gpu = torch.cuda.get_device_name()
    if args.no_table:
        settings = {"rounds": args.rounds, "recipes": list(args.recipes)}
        record("float8_linear", rows, device="cuda", **settings)
    else:
        run = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": versions("cuda"),
        }
        path = path_of(gpu)
        path.parent.mkdir(exist_ok=True)
        body = ",\n  ".join(json.dumps(row) for row in rows)
        head = json.dumps({"format": FORMAT, "gpu": gpu, "run": run})[:-1]
        path.write_text(f'{head}, "rows": [\n  {body}\n]}}\n')
        print(f"wrote {path.name}")
    print(table(lines))


if __name__ == "__main__":
    main()
