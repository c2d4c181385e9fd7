"""What is alive when a compiled stack of Llama-3-8B's blocks needs the most memory.

    python packages/ao-float8/benchmarks/peak_llama_blocks.py --out FOLDER

Sides are those of `bench_llama_blocks.py`. Of each, one pass is recorded by the CUDA allocator: the
bytes that forward leaves, the largest sum of allocations in forward and in backward of every block,
and, at the largest of all, what is alive, by the line of the compiler's code that allocated it.
FOLDER gets, for every side, these tables (`peak-SIDE.txt`), the kernels of a pass
(`kernels-SIDE.txt`) and the compiler's code (`code-SIDE/`). Memory is in MB (1e6 bytes), without
weights and inputs; time in microseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import linecache
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from bench_llama_blocks import Side, Stack, compile_blocks, converters
from llama import SHAPES, turns
from torch._inductor.runtime.cache_dir_utils import cache_dir

Entry = dict[str, Any]
SIGNS = {"alloc": 1, "free_requested": -1}


def recorded(side: Side) -> tuple[list[Entry], int]:
    """Allocations and frees of one pass in their order, and how many of them are of forward."""
    x, *turn = side.inputs
    x = x.detach().requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history("all", context="all", stacks="python")
    y = side.model(x, *turn)
    n_forward = len(events())
    y.backward(side.dy)
    side.model.zero_grad(set_to_none=True)
    found = events()
    torch.cuda.memory._record_memory_history(None)
    return found, n_forward


def events() -> list[Entry]:
    traces = torch.cuda.memory._snapshot()["device_traces"]
    return [e for trace in traces for e in trace if e["action"] in SIGNS]


def is_generated(file: str) -> bool:
    return file.startswith(cache_dir())


def place(entry: Entry) -> tuple[str, int]:
    """File and line of the compiler's code, else the innermost one that is not torch's."""
    frames = [(f["filename"], f["line"]) for f in entry.get("frames", ())]
    for name, line in frames:
        if is_generated(name):
            return name, line
    own = [f for f in frames if f[0].endswith(".py") and "/torch/" not in f[0]]
    return own[0] if own else ("unknown", 0)


def text(where: tuple[str, int]) -> str:
    name, line = where
    return f"{Path(name).stem[:6]}:{line} {linecache.getline(name, line).strip()[:120]}"


def alive_at(entries: list[Entry], index: int) -> list[Entry]:
    alive: dict[int, Entry] = {}
    for entry in entries[: index + 1]:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = entry
        else:
            alive.pop(entry["addr"], None)
    return list(alive.values())


def grouped(entries: list[Entry], most: int) -> list[str]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for entry in entries:
        groups[place(entry)].append(entry["size"])
    ordered = sorted(groups.items(), key=lambda item: -sum(item[1]))
    lines = [f"{sum(s) / 1e6:8.1f} MB in {len(s):2d}  {text(where)}" for where, s in ordered[:most]]
    rest = sum(sum(sizes) for _, sizes in ordered[most:])
    return [*lines, f"{rest / 1e6:8.1f} MB in all other lines"]


def tables(entries: list[Entry], n_forward: int, most: int) -> list[str]:
    sums, held = [], 0
    for entry in entries:
        held += SIGNS[entry["action"]] * entry["size"]
        sums.append(held)
    lines = [f"forward leaves {sums[n_forward - 1] / 1e6:.1f} MB"]
    lines += grouped(alive_at(entries, n_forward - 1), most)
    peak = max(range(len(sums)), key=sums.__getitem__)
    lines += ["", f"the peak is {sums[peak] / 1e6:.1f} MB, when this is allocated:"]
    lines += [text(place(entries[peak]))]
    lines += grouped(alive_at(entries, peak), most)
    lines += ["", "backward, every allocation that makes more than 0.97 of the peak:"]
    lines += [
        f"{sums[i] / 1e6:8.1f} MB  {text(place(entries[i]))}"
        for i in range(n_forward, len(sums))
        if sums[i] > 0.97 * sums[peak] and entries[i]["action"] == "alloc"
    ][:40]
    return lines


def kernels(side: Side, most: int) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        side.run()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in found)
    rows = [f"{e.self_device_time_total:9.1f} us in {e.count:3d}  {e.key[:130]}" for e in found]
    return [f"{total:9.1f} us in all", *rows[:most]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="8b-block")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--lines", type=int, default=25, help="of each table")
    parser.add_argument(
        "--sides", nargs="+", default=["tensorwise:plain", "tensorwise", "tensorwise:recast"]
    )
    parser.add_argument("--no-torchao", action="store_true")
    args = parser.parse_args()
    args.device = "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    shape = dataclasses.replace(SHAPES[args.shape], layers=args.layers)
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(args.batch, args.tokens, shape.width, **options)
    dy = torch.randn_like(x)
    turn = turns(args.tokens, shape.width // shape.heads, x.device, torch.bfloat16)
    for name, convert in converters(args).items():
        model = Stack(shape, None, "cuda")
        convert(model)
        compile_blocks(model, name)
        side = Side(model, (x, *turn), dy)
        for _ in range(3):
            side.run()
        ms, peak_gb = side.milliseconds(4), side.peak_gb()
        entries, n_forward = recorded(side)
        lines = [f"{name}: {ms:.2f} ms, peak {peak_gb:.3f} GB, weights included"]
        lines += tables(entries, n_forward, args.lines)
        stem = name.replace(":", "-").replace(" ", "-")
        (args.out / f"peak-{stem}.txt").write_text("\n".join(lines) + "\n")
        (args.out / f"kernels-{stem}.txt").write_text("\n".join(kernels(side, 70)) + "\n")
        code = args.out / f"code-{stem}"
        code.mkdir(exist_ok=True)
        for file in {place(entry)[0] for entry in entries}:
            if is_generated(file):
                shutil.copy(file, code)
        print(*lines, "", sep="\n", flush=True)
        del model, side, entries


if __name__ == "__main__":
    main()
