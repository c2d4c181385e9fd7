"""Steps of AdamW, ours beside torch's fused one, torchao's and bitsandbytes'.

python benchmarks/bench_adam_step.py                       a GPU: 0.998e9 parameters, and 300 small
python benchmarks/bench_adam_step.py --device cpu          a CPU, 16e6 float32 parameters
python benchmarks/bench_adam_step.py --sweep               shapes of the Triton launch, 8 bits

Large: an embedding of 128256 x 2048, as Llama-3.2-1B has it, and 16 matrices of 22448 x 2048.
Small: 300 vectors of 16384 to 262144 elements. Five: 300 vectors of five sizes in that range, for
torchao, which compiles each size (9 s). All sides have the same parameters and gradients
and take steps in turn, in an order drawn anew each round; the median is given, with the 10th and
90th percentile. The limit counts the bytes that must be read and written, at the rate of a copy
that was timed in the same rounds. "first" is the first step in this process, which makes the
state and, on the device, compiles; "peak" what a later step allocates at most beyond what was
there, in shares of the state. The host's time is not in the time of the large set and all of it
in that of the small.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import rows as results
import torch
from torch import Tensor

import ao_optim

LARGE = ((128256, 2048), *((22448, 2048),) * 16)
SMALL = tuple((16384 + round(i * (262144 - 16384) / 299 / 128) * 128,) for i in range(300))
FIVE = tuple((1 << 14 + i % 5,) for i in range(300))
ON_CPU = ((2048, 4096), (4096, 1536), (5, 377), (1024, 2048))
STATE_BYTES = {"8bit": 2 + 8 / 256, "fp8": 2 + 8 / 256, "4bit": 1 + 8 / 128, "full": 8.0}


def ours(kind: str, **options: Any) -> Callable[[list[Tensor]], Any]:
    names = {"8bit": "AdamW8bit", "fp8": "AdamWFp8", "4bit": "AdamW4bit", "full": "AdamW"}
    return lambda params: getattr(ao_optim, names[kind])(params, lr=1e-4, **options)


def sides(device: str, peers: bool, stochastic: bool) -> dict[str, Callable[[list[Tensor]], Any]]:
    found: dict[str, Callable[[list[Tensor]], Any]] = {
        "torch fused": lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True)
    }
    found |= {f"ours {kind}": ours(kind) for kind in STATE_BYTES}
    if stochastic:
        found["ours 8bit stochastic"] = ours("8bit", bf16_stochastic_round=True)
    if not peers:
        return found
    if device == "cuda":
        try:
            import torchao.optim

            for name in ("AdamW8bit", "AdamWFp8", "AdamW4bit"):
                kind = getattr(torchao.optim, name)
                found[f"torchao {name[5:].lower()}"] = lambda params, k=kind: k(params, lr=1e-4)
        except Exception as error:  # any import error of another library: say so and go on
            print(f"without torchao: {error!r}")
        try:
            import bitsandbytes

            found["bitsandbytes 8bit"] = lambda params: bitsandbytes.optim.AdamW8bit(
                params, lr=1e-4
            )
        except Exception as error:
            print(f"without bitsandbytes: {error!r}")
    return found


def parameters(
    shapes: tuple[tuple[int, ...], ...], device: str, dtype: torch.dtype
) -> list[Tensor]:
    found = []
    for shape in shapes:
        p = torch.nn.Parameter(0.02 * torch.randn(shape, device=device, dtype=dtype))
        p.grad = 1e-3 * torch.randn(shape, device=device, dtype=dtype)
        found.append(p)
    return found


class Clock:
    """Milliseconds of calls: between events on a GPU, or on the wall until all work is done."""

    def __init__(self, device: str, wall: bool) -> None:
        self.cuda, self.wall = device == "cuda", wall or device == "cpu"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, call: Callable[[], Any], repeats: int) -> float:
        self.wait()
        if self.wall:
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            self.wait()
            return (time.perf_counter() - start) / repeats * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # the host runs ahead from here on
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats


@contextlib.contextmanager
def peak_bytes() -> Iterator[list[int]]:
    found = [0]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        found[0] = torch.cuda.max_memory_allocated() - before


def measured(
    shapes: tuple[tuple[int, ...], ...],
    makers: dict[str, Callable[[list[Tensor]], Any]],
    device: str,
    dtype: torch.dtype,
    *,
    wall: bool,
    seconds: float,
) -> list[dict[str, Any]]:
    params = parameters(shapes, device, dtype)
    numel, clock = sum(p.numel() for p in params), Clock(device, wall)
    optimizers: dict[str, Any] = {}
    firsts, peaks = {}, {}
    for name, maker in makers.items():
        clock.wait()
        start = time.perf_counter()
        try:
            made = maker(params)
            made.step()
            clock.wait()
        except Exception as error:  # another library's: the others are still to be measured
            if name.startswith("ours"):
                raise
            print(f"without {name}: {error!r}"[:300])
            continue
        firsts[name], optimizers[name] = time.perf_counter() - start, made
        with peak_bytes() as peak:
            made.step()
        peaks[name] = peak[0]
    calls: dict[str, Callable[[], Any]] = {n: o.step for n, o in optimizers.items()}
    size = 1 << (29 if device == "cuda" and not wall else 26)
    source, target = (torch.zeros(size // 4, device=device) for _ in range(2))
    calls["copy"] = lambda: target.copy_(source)
    if device == "cuda":  # a kernel's copy: that of the copy engine is slower
        calls["copy"] = lambda: torch.add(source, 1.0, out=target)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(samples["copy"]) < 7:
        order.shuffle(names)
        for name in names:
            repeats = 4 if device == "cuda" else 1
            samples[name].append(clock.time(calls[name], repeats))
    found = {name: sorted(values) for name, values in samples.items()}
    last = len(found["copy"]) - 1
    median, low, high = (
        {name: values[round(last * q)] for name, values in found.items()} for q in (0.5, 0.1, 0.9)
    )
    rate = 2 * size / median["copy"] / 1e9  # TB/s
    rows = []
    for name in optimizers:
        width = torch.finfo(dtype).bits // 8
        kind = name.split()[1]
        state = {"fused": 2 * width}.get(kind, STATE_BYTES.get(kind, 0.0))
        # A copy on a CPU reads what it writes, too: its rate is no limit there.
        limit = numel * (3 * width + 2 * state) / rate / 1e9 if device == "cuda" else None
        rows.append(
            {
                "side": name,
                "parameters": numel,
                "tensors": len(shapes),
                "dtype": str(dtype),
                "ms": [median[name], low[name], high[name]],
                "against_torch_fused": median[name] / median["torch fused"],
                "first_s": firsts[name],
                "peak_share": peaks[name] / (numel * state) if state else None,
                "limit_ms": limit,
                "share": limit and limit / median[name],
                "copy_tbps": rate,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    copy = rows[0]["copy_tbps"]
    print(f"\n{title}: {rows[0]['tensors']} tensors, {rows[0]['parameters'] / 1e6:.1f}e6 "
          f"parameters of {rows[0]['dtype']}, copy {copy:.3f} TB/s")  # fmt: skip
    print(
        results.table(
            [
                {
                    "side": row["side"],
                    "ms": f"{row['ms'][0]:.3f} [{row['ms'][1]:.3f}..{row['ms'][2]:.3f}]",
                    "x torch fused": f"{row['against_torch_fused']:.3f}",
                    "first step, s": f"{row['first_s']:.2f}",
                    "peak / state": f"{row['peak_share'] or 0:.4f}",
                    "limit, ms": f"{row['limit_ms']:.3f}" if row["limit_ms"] else "",
                    "share": f"{row['share']:.2f}" if row["share"] else "",
                }
                for row in rows
            ]
        ),
        flush=True,
    )


def sweep(device: str, seconds: float) -> None:
    """The shapes of the Triton launch on the large set."""
    from ao_kernels.triton import steps

    kept = steps._WARPS, steps._TILE, steps._TILES
    makers = {"torch fused": lambda params: torch.optim.AdamW(params, lr=1e-4, fused=True)}
    for kind in ("8bit", "4bit"):
        for shape in ((1, 256, 4), (1, 256, 8), (1, 256, 16), (1, 256, 32), (1, 512, 4),
                      (4, 1024, 4), (8, 2048, 1), (8, 2048, 4)):  # fmt: skip
            steps._WARPS, steps._TILE, steps._TILES = shape
            try:
                rows = measured(
                    LARGE[:5], {**makers, f"ours {kind}": ours(kind)}, device, torch.bfloat16,
                    wall=False, seconds=seconds,
                )  # fmt: skip
            finally:
                steps._WARPS, steps._TILE, steps._TILES = kept
            row = rows[1]
            print(
                f"{kind} warps {shape[0]} tile {shape[1]} tiles {shape[2]:2d}: "
                f"{row['ms'][0]:.3f} ms, {row['against_torch_fused']:.3f} x fused, "
                f"share {row['share'] or 0:.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each table")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--sides", help="only these, by their names in the table")
    parser.add_argument("--sets", default="large,small", help="of a GPU: large,small,five")
    parser.add_argument("--stochastic", action="store_true", help="one more side")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--keep", action="store_true", help="append rows to benchmarks/results")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.zeros(1, device="cuda")  # the context is not part of anybody's first step
    if options.sweep:
        sweep(options.device, options.seconds)
        return
    makers = sides(options.device, not options.no_peers, options.stochastic)
    if options.sides:  # torch's fused one is what the others are compared with
        wanted = {"torch fused", *options.sides.split(",")}
        makers = {name: maker for name, maker in makers.items() if name in wanted}
    if options.device == "cpu":
        tables = {"CPU": (ON_CPU, torch.float32, True)}
    else:
        tables = {
            "large": (LARGE, torch.bfloat16, False),
            "small, with the host's time": (SMALL, torch.bfloat16, True),
            "five, with the host's time": (FIVE, torch.bfloat16, True),
        }
        chosen = options.sets.split(",")
        tables = {title: table for title, table in tables.items() if title.split(",")[0] in chosen}
    for title, (shapes, dtype, wall) in tables.items():
        rows = measured(shapes, makers, options.device, dtype, wall=wall, seconds=options.seconds)
        show(title, rows)
        if options.keep:
            results.append(
                "adam_step", rows, device=options.device, set=title, threads=torch.get_num_threads()
            )


if __name__ == "__main__":
    main()
