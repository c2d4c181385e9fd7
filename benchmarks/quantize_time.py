"""How long quantize_ takes on a 1B-parameter Llama shape, and how much memory it adds.

    python benchmarks/quantize_time.py [--layers 16] [--only NAME ...]

One quantization a format, of a model that was just built. Memory is the largest resident size in
the call, over that before it.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

import measure
import models

from ao_quant import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

FORMATS: dict[str, Any] = {
    "int8 weight-only": Int8WeightOnlyConfig(),
    "8da4w g32": Int8DynamicActivationInt4WeightConfig(group_size=32),
    "int4 g128": Int4WeightOnlyConfig(group_size=128),
    "int4 g128 hqq": Int4WeightOnlyConfig(group_size=128, algorithm="hqq"),
}


class Peak:
    """The largest resident size, in bytes, between enter and exit, over that at enter (Linux)."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watch.join()

    @property
    def added(self) -> int:
        return self.most - self.before


def resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16, help="16 make the 1.24e9 parameters")
    parser.add_argument("--only", nargs="+", choices=list(FORMATS))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only or FORMATS:
        model = models.llama("llama-1b", layers=arguments.layers)
        parameters = sum(p.numel() for p in model.parameters())
        with Peak() as peak:
            took = measure.seconds(lambda m=model, c=FORMATS[name]: quantize_(m, c))
        rows.append({"format": name, "parameters": parameters, "s": took, "added": peak.added})
        print(f"{name}: {took:.1f} s, {peak.added / 1e6:.0f} MB above", flush=True)
    print(measure.table([shown(row) for row in rows]))
    print(f"recorded in {measure.record('quantize_time', rows, layers=arguments.layers)}")


def shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "format": row["format"],
        "parameters": f"{row['parameters'] / 1e9:.2f}e9",
        "seconds": f"{row['s']:.1f}",
        "memory added, MB": f"{row['added'] / 1e6:.0f}",
    }


if __name__ == "__main__":
    main()
