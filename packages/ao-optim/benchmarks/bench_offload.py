"""Step time and peak GPU memory with the optimizer on the CPU, against torch's on the GPU.

    python benchmarks/bench_offload.py                         # 8 blocks of Llama-3-8B, 8192 tokens
    python benchmarks/bench_offload.py --sides plain,8bit-backward --no-recompute

Every side trains the same bfloat16 model in turn, the first side twice, so that a drift of the
machine shows. A step is forward, backward and `step()`, until the device is idle.

The counted limit of a side whose copies and steps overlap with backward is the longest of
 * the model's own time without an optimizer,
 * the bus: bytes down and up, both directions at once, at the rate that is measured: 2 bytes a
   parameter each way for gradients and weights, or the state's bytes,
 * the CPU, if it steps: the base optimizer's step over all parameters, measured alone, behind
   forward, in which there are no gradients,
plus what the last batch of parameters (64 MB) takes, which no computation hides.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import rows
import torch
from llama import Shape, Stack

import ao_optim
from ao_optim import CPUOffloadOptimizer, StateOffloadOptimizer

SHAPE = Shape(width=4096, layers=8, heads=32, kv_heads=8, hidden=14336)
TINY = Shape(width=128, layers=2, heads=4, kv_heads=2, hidden=256)
LR = 1e-5


def offload(base: type, **options: Any) -> Callable[[Any], Any]:
    return lambda params: CPUOffloadOptimizer(
        params, base, offload_gradients=True, lr=LR, **options
    )


def state(base: type, **options: Any) -> Callable[[Any], Any]:
    return lambda params: StateOffloadOptimizer(
        params, base, step_in_backward=True, lr=LR, **options
    )


def torchao(params: Any) -> Any:
    from torchao.optim import CPUOffloadOptimizer as Theirs

    return Theirs(params, torch.optim.AdamW, offload_gradients=True, lr=LR, fused=True)


SIDES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda params: torch.optim.AdamW(params, lr=LR, fused=True),
    "8bit": lambda params: ao_optim.AdamW8bit(params, lr=LR),
    "8bit-state": state(ao_optim.AdamW8bit),
    "4bit-state": state(ao_optim.AdamW4bit),
    "fused-state": state(torch.optim.AdamW, fused=True),
    "8bit-offload": offload(ao_optim.AdamW8bit),
    "8bit-offload-sr": offload(ao_optim.AdamW8bit, bf16_stochastic_round=True),
    "4bit-offload": offload(ao_optim.AdamW4bit),
    "fused-offload": offload(torch.optim.AdamW, fused=True),
    "torchao": torchao,
}
WORDS = {
    "plain": "torch.optim.AdamW, fused, on the GPU",
    "8bit": "AdamW8bit on the GPU",
    "8bit-state": "StateOffload, AdamW8bit, in backward",
    "4bit-state": "StateOffload, AdamW4bit, in backward",
    "fused-state": "StateOffload, torch AdamW fused, in backward",
    "8bit-offload": "CPUOffload, AdamW8bit",
    "8bit-offload-sr": "CPUOffload, AdamW8bit, stochastic",
    "4bit-offload": "CPUOffload, AdamW4bit",
    "fused-offload": "CPUOffload, torch AdamW fused",
    "torchao": "torchao's CPUOffload, torch AdamW fused",
}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measured(side: str, options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """Milliseconds a step and of forward and backward alone, peak bytes."""
    device = options.device
    torch.manual_seed(0)
    with torch.device(device):
        model = Stack(shape, recompute=options.recompute).bfloat16()
        x = torch.randn(2, options.tokens // 2, shape.width).bfloat16()
    start = time.perf_counter()
    optimizer = SIDES[side](list(model.parameters()))
    built = time.perf_counter() - start

    steps, losses = [], []
    for number in range(options.warm + options.steps):
        if number == options.warm and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(device)
        start = time.perf_counter()
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        steps.append(time.perf_counter() - start)
        losses.append(loss.item())
    first, steps = steps[0], sorted(steps[options.warm :])
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    row = {
        "side": side,
        "ms": statistics.median(steps) * 1e3,
        "ms_low": steps[0] * 1e3,
        "ms_high": steps[-1] * 1e3,
        "peak_bytes": peak,
        "first_step_s": first,
        "built_s": built,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [losses[0], losses[-1]],
    }
    if isinstance(optimizer, CPUOffloadOptimizer):
        row["cpu_ms"] = cpu_step(optimizer)
        row["cpu_gbps"] = step_bytes(optimizer) / row["cpu_ms"] / 1e6
    if isinstance(optimizer, StateOffloadOptimizer):
        row["state_bytes"] = sum(x.nbytes for r in optimizer.state.values() for x in r.values())
    return row


def cpu_step(optimizer: CPUOffloadOptimizer) -> float:
    """Milliseconds of the base optimizer's step over everything, with the last gradients: the
    median of three."""
    for lane in optimizer._lanes.values():
        lane.host.grad = lane.gradient
    took = []
    for _ in range(3):
        start = time.perf_counter()
        optimizer.base.step()
        took.append(time.perf_counter() - start)
    for lane in optimizer._lanes.values():
        lane.host.grad = None
    return statistics.median(took) * 1e3


def step_bytes(optimizer: CPUOffloadOptimizer) -> int:
    """What the CPU's step must read and write: gradients once, parameters and state twice."""
    found = 0
    for lane in optimizer._lanes.values():
        record = optimizer.base.state.get(lane.host, {})
        found += 3 * lane.host.nbytes + 2 * sum(x.nbytes for x in record.values())
    return found


def memory_gbps(n_bytes: int) -> float:
    """What the CPU's memory gives all threads that read two streams and write one of them."""
    x, y = (torch.ones(n_bytes // 4) for _ in range(2))
    took = []
    for _ in range(7):
        start = time.perf_counter()
        y.add_(x)
        took.append(time.perf_counter() - start)
    return 3 * n_bytes / min(took) / 1e9


def model_alone(options: argparse.Namespace, shape: Shape) -> float:
    """Milliseconds of forward and backward without an optimizer."""
    torch.manual_seed(0)
    with torch.device(options.device):
        model = Stack(shape, recompute=options.recompute).bfloat16()
        x = torch.randn(2, options.tokens // 2, shape.width).bfloat16()
    times = []
    for _ in range(options.warm + options.steps):
        synchronize(options.device)
        start = time.perf_counter()
        model(x).float().square().mean().backward()
        synchronize(options.device)
        times.append(time.perf_counter() - start)
        model.zero_grad()
    return statistics.median(times[options.warm :]) * 1e3


def bus_gbps() -> tuple[float, float]:
    """GB/s down and up, at once, over pinned memory."""
    n_bytes = 512 << 20
    pinned = [torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    device = [torch.empty(n_bytes, dtype=torch.uint8, device="cuda") for _ in range(2)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    rates = []
    for _ in range(2):
        torch.cuda.synchronize()
        begin = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        end = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                begin[number].record()
                target, source = (pinned, device) if number == 0 else (device, pinned)
                target[number].copy_(source[number], non_blocking=True)
                end[number].record()
        torch.cuda.synchronize()
        rates = [n_bytes / begin[n].elapsed_time(end[n]) / 1e6 for n in range(2)]
    return rates[0], rates[1]


def clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--sides", default="plain,8bit-state,4bit-state,fused-state,fused-offload,torchao"
    )
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=SHAPE.layers)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--no-recompute", dest="recompute", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="a model for the CPU, to try this out")
    parser.add_argument("--no-record", dest="record", action="store_false")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() and not options.tiny else "cpu"
    shape = TINY if options.tiny else Shape(**{**SHAPE.__dict__, "layers": options.layers})
    sides = options.sides.split(",")
    if "torchao" in sides and importlib.util.find_spec("torchao") is None:
        print("torchao is not installed: its side is left out")
        sides.remove("torchao")
    alone = model_alone(options, shape)
    clean()
    down, up = bus_gbps() if options.device == "cuda" else (0.0, 0.0)
    clean()
    memory = memory_gbps(64 << 20 if options.tiny else 1 << 30)
    found = []
    others = [side for side in sides if side != "torchao"]
    leaks = [side for side in sides if side == "torchao"]  # keeps 3.5 GB of the device
    for side in [*others, sides[0], *leaks]:
        found.append(measured(side, options, shape))
        clean()
        print(
            f"{side}: {found[-1]['ms']:.1f} ms, {found[-1]['peak_bytes'] / 1e9:.2f} GB", flush=True
        )
    n = found[0]["parameters"]
    base = min(row["ms"] for row in found if row["side"] == sides[0])
    bus_ms = 2 * n / min(down, up) / 1e6 if down else 0.0
    print(
        f"\n{n / 1e9:.3f}e9 parameters, {options.tokens} tokens, recompute={options.recompute}; "
        f"the model alone {alone:.1f} ms; bus {down:.1f} down, {up:.1f} up GB/s: {bus_ms:.1f} ms; "
        f"the CPU's memory {memory:.1f} GB/s with {torch.get_num_threads()} threads"
    )
    lines = []
    for row in found:
        row |= {"model_ms": alone, "bus_ms": bus_ms, "memory_gbps": memory}
        row |= {"x_ms": row["ms"] / base}
        row["x_peak"] = row["peak_bytes"] / max(found[0]["peak_bytes"], 1)
        cells = {
            "side": WORDS[row["side"]],
            "ms a step": f"{row['ms']:.1f} [{row['ms_low']:.1f}..{row['ms_high']:.1f}]",
            "x plain": f"{row['x_ms']:.2f}",
            "peak GB": f"{row['peak_bytes'] / 1e9:.2f}",
            "x peak": f"{row['x_peak']:.2f}",
            "CPU step ms": f"{row['cpu_ms']:.0f}" if "cpu_ms" in row else "",
            "GB/s": f"{row['cpu_gbps']:.0f}" if "cpu_gbps" in row else "",
            "limit ms": "",
        }
        last = min((64 << 20) / (2 * n), 1.0)  # the share of the last batch
        if "cpu_ms" in row:
            row["limit_ms"] = max(alone, bus_ms, alone / 4 + row["cpu_ms"])
            row["limit_ms"] += last * (row["cpu_ms"] + 2 * bus_ms)
        if "state_bytes" in row:
            state_ms = bus_ms * row["state_bytes"] / (2 * n)
            row["limit_ms"] = max(alone, state_ms) + last * 2 * state_ms
        if "limit_ms" in row:
            cells["limit ms"] = f"{row['limit_ms']:.1f}"
        lines.append(cells)
    print(rows.table(lines))
    if options.record:
        settings = {key: getattr(options, key) for key in ("tokens", "layers", "recompute")}
        print(rows.append("offload", found, device=options.device, **settings))


if __name__ == "__main__":
    main()
