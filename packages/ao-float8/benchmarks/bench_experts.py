"""Experts of a model, forward and backward: bfloat16 and float8, whose weights are cast in every
pass ("pass") or were cast by an earlier pass of the step ("step": all micro-batches but the first).

    python packages/ao-float8/benchmarks/bench_experts.py

Three times of a pass, each the median of the rounds, sides in turn:

device  of the GPU alone: passes that were queued while it waited
eager   wall time without a graph: host and device, whichever takes longer
graph   in a CUDA graph. Codes that are kept do not serve there, so "step" has none

Before it is timed, a side's results must be near those of bfloat16. The limit of "step" is the time
of "pass" less that of the cast of the weights ("cast"), measured in the same rounds.

M tokens, E experts, N output features, K input features.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from measure import alternate, record, table  # noqa: E402

from ao_float8 import Float8LinearConfig  # noqa: E402
from ao_float8.experts import convert_experts_to_float8_training  # noqa: E402
from ao_kernels.ops import quantize_rowwise_both  # noqa: E402

CYCLES = 40_000_000  # of waiting, about 20 ms: the host queues the passes meanwhile


class Experts(nn.Module):
    def __init__(self, w_ENK: Tensor, offsets: Tensor, cache: str, recipe: str) -> None:
        super().__init__()
        self.w, self.offsets = nn.Parameter(w_ENK.clone()), offsets
        if cache:
            config = dataclasses.replace(
                Float8LinearConfig.from_recipe_name(recipe),
                weight_cache=cache,
                emulate=not w_ENK.is_cuda,
            )
            convert_experts_to_float8_training(self, config=config)

    def run(self, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        """y and the gradients of x and w."""
        x = x.detach().requires_grad_()
        y = F.grouped_mm(x, self.w.mT, offs=self.offsets)
        return y.detach(), *torch.autograd.grad(y, [x, self.w], dy)


Run = Callable[[], object]


def device_ms(run: Run, passes: int) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(CYCLES)
    first.record()
    for _ in range(passes):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / passes


def eager_ms(run: Run, passes: int, on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(passes):
        run()
    if on_gpu:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / passes


def captured(run: Run) -> Run:
    run()  # compiles, chooses algorithms
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def near(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], side: str) -> None:
    for name, one, other in zip(("y", "dx", "dw"), found, wanted, strict=True):
        error = ((one.float() - other.float()).norm() / other.float().norm()).item()
        assert error < 0.08, f"{side}: {name} is off by {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--shape", default="4096x4096", help="NxK")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--recipe", default="rowwise")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--passes", type=int, default=8, help="that a round queues")
    parser.add_argument("--device", default="cuda", help="cpu: emulated, to try the script")
    args = parser.parse_args()
    torch.manual_seed(0)
    (N, K), M, E = map(int, args.shape.split("x")), args.tokens, args.experts
    on_gpu = args.device == "cuda"
    options = {"device": args.device, "dtype": torch.bfloat16}
    x, dy = torch.randn(M, K, **options), torch.randn(M, N, **options)
    w_ENK = torch.randn(E, N, K, **options) / K**0.5
    chosen = torch.rand(M, E, device=args.device).argmax(1)
    offsets = torch.bincount(chosen, minlength=E).cumsum(0).to(torch.int32)

    caches = {"bf16": "", "pass": "pass", "step": "step"}
    experts = {name: Experts(w_ENK, offsets, c, args.recipe) for name, c in caches.items()}
    wanted = experts["bf16"].run(x, dy)
    for name, side in experts.items():
        near(side.run(x, dy), wanted, name)
    del wanted
    runs: dict[str, Run] = {n: lambda side=side: side.run(x, dy) for n, side in experts.items()}
    runs["cast"] = lambda: quantize_rowwise_both(w_ENK, torch.float8_e4m3fn, True)
    times: dict[str, Callable[[], float]] = {}
    for name, run in runs.items():
        times[f"{name} eager"] = lambda run=run: eager_ms(run, args.passes, on_gpu)
        if on_gpu:
            times[f"{name} device"] = lambda run=run: device_ms(run, args.passes)
        if on_gpu and name != "step":
            replay = captured(run)
            times[f"{name} graph"] = lambda run=replay: device_ms(run, args.passes)
    found = alternate(times, args.rounds)

    rows, lines = [], []
    for name in runs:
        of = {kind: found.get(f"{name} {kind}") for kind in ("device", "eager", "graph")}
        kept = experts[name].w.codes.nbytes if name == "step" else 0
        rows.append({"side": name, **{f"{k}_ms": v for k, v in of.items() if v}, "kept": kept})
        lines.append({"side": name, "codes kept, MB": f"{kept / 1e6:.0f}"})
        for kind, value in of.items():
            bf16 = found.get(f"bf16 {kind}")
            lines[-1][f"{kind} ms"] = f"{value:.3f}" if value else ""
            ratio = f"{bf16.median / value.median:.2f}" if value and bf16 else ""
            lines[-1][f"{kind} x bf16"] = ratio if name != "cast" else ""
    if on_gpu:
        settings = {"M": M, "N": N, "K": K, "E": E, "recipe": args.recipe, "passes": args.passes}
        record("float8_experts", rows, device="cuda", rounds=args.rounds, **settings)
    kind = "device" if on_gpu else "eager"
    limit = found[f"pass {kind}"].median - found[f"cast {kind}"].median
    share = limit / found[f"step {kind}"].median
    print(table(lines))
    print(f"pass less cast: {limit:.3f} ms ({kind}); step reaches {share:.2f} of it")


if __name__ == "__main__":
    main()
