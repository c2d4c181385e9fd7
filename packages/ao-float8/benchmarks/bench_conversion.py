"""Conversion of a model of the shape of Llama-3-8B: seconds, and what memory it takes.

    python packages/ao-float8/benchmarks/bench_conversion.py        meta, CPU, and a GPU

Weights are allocated and never written, so the 16 GB of a CPU model are addresses. Memory is what
is allocated while the model is converted, at the most: of Python, of the process, of the GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
import tracemalloc
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "packages/ao-float8/examples")]

from llama import SHAPES, Llama  # noqa: E402
from measure import record, table  # noqa: E402

from ao_float8 import Float8LinearConfig, convert_to_float8_training  # noqa: E402


def built(device: str, layers: int) -> Llama:
    """32 blocks, the embedding and the head: 8.03e9 parameters."""
    shape = dataclasses.replace(SHAPES["8b-block"], layers=layers, vocabulary=128256, tied=False)
    with torch.device("meta"):
        model = Llama(shape).bfloat16()
    return model if device == "meta" else model.to_empty(device=device)


def measured(device: str, layers: int, gather: bool) -> dict[str, object]:
    model = built(device, layers)
    addresses = {name: p.data_ptr() for name, p in model.state_dict().items()}
    config = Float8LinearConfig(enable_fsdp_float8_all_gather=gather, emulate=device == "cpu")
    before = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    report = convert_to_float8_training(
        model, config=config, module_filter_fn=lambda module, name: name != "head"
    )
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    on_gpu = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    assert {name: p.data_ptr() for name, p in model.state_dict().items()} == addresses
    tracemalloc.start()  # which takes time of its own: on another model
    other = built("meta", layers)
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    convert_to_float8_training(other, config=config, module_filter_fn=lambda m, n: n != "head")
    python = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    return {
        "device": device,
        "float8_all_gather": gather,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": len(report.converted),
        "seconds": seconds,
        "python_bytes": python,
        "resident_bytes": 1024 * grown,
        "gpu_bytes": on_gpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    devices = ["meta", "cpu"] + ["cuda"] * torch.cuda.is_available()
    parser.add_argument("--devices", nargs="+", default=devices)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    rows = [
        measured(device, args.layers, gather) for device in args.devices for gather in (False, True)
    ]
    for device in () if args.no_record else args.devices:
        found = [row for row in rows if row["device"] == device]
        record("float8_conversion", found, device="cuda" if device == "cuda" else "cpu")
    print(table([{name: show(value) for name, value in row.items()} for row in rows]))


def show(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
