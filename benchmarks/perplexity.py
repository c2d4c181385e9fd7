"""What few bits cost: perplexity of the reference model in every format.

    python benchmarks/perplexity.py --model DIR [--only NAME ...]

The model computes in float32; all linears but the tied head are quantized. Text is the first 24
windows of 512 tokens of each held-out text: window i is tokens[512 i : 512 i + 513], its first 512
are inputs, its last 512 targets. Float gives 8.334 on gcide and 11.784 on pydoc.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import measure
import models
import numpy as np
import torch
from torch import nn

from ao_quant import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)

WINDOWS = 24


def intx(bits: int, **settings: Any) -> IntxWeightOnlyConfig:
    dtype = getattr(torch, f"int{bits}")
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(128), **settings)


FORMATS: dict[str, Any] = {
    "float32": None,
    "int8 weight-only per row": Int8WeightOnlyConfig(),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "8da4w g32": Int8DynamicActivationInt4WeightConfig(group_size=32),
    "int4 g128 symmetric": Int4WeightOnlyConfig(group_size=128),
    "int4 g128 hqq": Int4WeightOnlyConfig(group_size=128, algorithm="hqq"),
    "int4 g128 asymmetric": intx(4, mapping_type="asymmetric"),
    "int3 g128 hqq": intx(3, algorithm="hqq"),
    "int2 g128 hqq": intx(2, algorithm="hqq"),
}


def texts(folder: Path) -> dict[str, list[torch.Tensor]]:
    """Name of each held-out text -> its windows of 513 tokens."""
    tokens = np.load(folder / "eval_tokens.npz")
    starts = range(0, WINDOWS * models.WINDOW, models.WINDOW)
    return {
        name: [torch.from_numpy(tokens[name][i : i + models.WINDOW + 1]).long() for i in starts]
        for name in tokens.files
    }


def quantizable(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of the reference model (or AO_REFERENCE_LM)")
    parser.add_argument("--only", nargs="+", choices=list(FORMATS), help="formats to measure")
    arguments = parser.parse_args()
    folder = models.reference_lm(arguments.model)
    held_out = texts(folder)
    model = models.load(folder, torch.float32)
    rows: list[dict[str, Any]] = []
    for name in ["float32", *(n for n in arguments.only or FORMATS if n != "float32")]:
        changed = copy.deepcopy(model)
        if FORMATS[name] is not None:
            quantize_(changed, FORMATS[name], filter_fn=quantizable)
        found = {text: models.perplexity(changed, held_out[text]) for text in held_out}
        rows.append({"format": name, **found})
        print(name, {text: round(value, 3) for text, value in found.items()}, flush=True)
    base = rows[0]
    print(measure.table([shown(row, base, list(held_out)) for row in rows]))
    print(f"recorded in {measure.record('perplexity', rows, windows=WINDOWS)}")


def shown(row: dict[str, Any], base: dict[str, Any], names: list[str]) -> dict[str, str]:
    cells = {"format": row["format"]}
    for name in names:
        cells[name] = f"{row[name]:.3f}"
        cells[f"{name} change"] = f"{100 * (row[name] / base[name] - 1):+.2f}%"
    return cells


if __name__ == "__main__":
    main()
