"""Writes docs/support.md from the registries: `python docs/generate_support.py`. CI fails when the
page is stale.

Every row is found by doing it: each config is applied to a small module of each kind, the module is
called, and the ops that its weight reached are asked for their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import ao_kernels.ops
from ao_core.config import AOBaseConfig
from ao_core.errors import ConversionError
from ao_core.match import FqnToConfig
from ao_kernels.registry import OPS, Op
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)

PAGE = Path(__file__).parent / "support.md"

CONFIGS: dict[str, AOBaseConfig] = {
    "`Int8WeightOnlyConfig`": Int8WeightOnlyConfig(),
    "`Int8DynamicActivationInt8WeightConfig`": Int8DynamicActivationInt8WeightConfig(),
    "`Int4WeightOnlyConfig`": Int4WeightOnlyConfig(),
    "`Int8DynamicActivationInt4WeightConfig` (8da4w)": Int8DynamicActivationInt4WeightConfig(),
    "`IntxWeightOnlyConfig` (int1 to int8)": IntxWeightOnlyConfig(weight_dtype=torch.int3),
    "`Int8DynamicActivationIntxWeightConfig` (int1 to int8)": Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int3
    ),
    "`Int8StaticActivationInt8WeightConfig`": Int8StaticActivationInt8WeightConfig(
        activation_range=4.0
    ),
    "`Float8WeightOnlyConfig`": Float8WeightOnlyConfig(),
    "`Float8DynamicActivationFloat8WeightConfig`": Float8DynamicActivationFloat8WeightConfig(),
    "`Float8StaticActivationFloat8WeightConfig`": Float8StaticActivationFloat8WeightConfig(
        activation_range=4.0
    ),
    "`Float8DynamicActivationInt4WeightConfig`": Float8DynamicActivationInt4WeightConfig(),
}


class Experts(nn.Module):
    """(E, N, K) weights, as fused mixture-of-experts modules hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(2, 16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each expert on its own, and all of them on tokens that are sorted by expert."""
        ends = torch.tensor([1, 3], dtype=torch.int32)
        each = torch.cat([nn.functional.linear(x[:1], self.proj[e]) for e in range(2)])
        return each + nn.functional.grouped_mm(x, self.proj.mT, offs=ends)[:2]


KINDS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "linear": (lambda: nn.Linear(32, 16), torch.randn(3, 32)),
    "embedding": (lambda: nn.Embedding(16, 32), torch.tensor([1, 2])),
    "conv 1x1": (lambda: nn.Conv2d(32, 16, 1), torch.randn(1, 32, 2, 2)),
    "experts": (Experts, torch.randn(3, 32)),
}

NOTES = """
* Every format is tested, by the same contract suites, in eager mode, under
  `torch.compile(fullgraph=True)`, `torch.export` and `inference_mode`, with gradients for
  activations and biases, with `state_dict`, `deepcopy` and `torch.load(weights_only=True)`, and
  sharded by FSDP2 and DTensor (rows and columns) over two processes, on CPUs with gloo and on
  two GPUs with NCCL.
* Float8 training (`ao_float8.Float8Linear`) is no format: every recipe is tested in eager mode,
  under `torch.compile(fullgraph=True)` and with activation checkpointing; tensorwise and rowwise
  also under tensor and sequence parallel, tensorwise with FSDP2's all-gather of codes.
* FSDP2 and DTensor shards may be uneven; cuts must fall between groups and blocks. FSDP2 sends an
  uneven shard of up to 4 bits as 1 byte an element and one of 8 bits as 2. Where a whole row of
  integers shares a scale, uneven shards along the input features cannot be gathered again.
* Experts whose products are grouped (`torch.nn.functional.grouped_mm`, as Transformers calls it)
  take the grouped op of their format; formats without one take the linear expert by expert.
* Where a column says *reference*, plain torch runs: exact, on any device, slow. `op.why_not(...)`
  says why a kernel was not taken.
* CUDA C++ kernels are built where a CUDA toolkit is found, and run on compute capability 9.0;
  Triton or the reference stands in.
* cpu kernels choose AVX-512 (VNNI, BF16), AVX2 or plain C++ when they run; NEON is compiled on Arm.
"""


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The names of the ops that are called inside."""
    names: list[str] = []
    call = Op.__call__

    def record(self: Op, *args: object, **kwargs: object) -> object:
        if self.name not in names:
            names.append(self.name)
        return call(self, *args, **kwargs)  # type: ignore[arg-type]

    with mock.patch.object(Op, "__call__", record):
        yield names


def used_op(config: AOBaseConfig, make: Callable[[], nn.Module], x: torch.Tensor) -> str:
    """The op that a converted module calls, or a dash where it cannot be converted."""
    module = make()
    rules = FqnToConfig({name: config for name, p in module.named_parameters() if p.dim() > 1})
    try:
        quantize_(module, rules)
    except ConversionError:
        return "-"
    with recorded() as names:
        module(x)
    return " ".join(f"`{name}`" for name in names)


def formats() -> Iterator[str]:
    yield "| config | " + " | ".join(KINDS) + " |"
    yield "|---" * (len(KINDS) + 1) + "|"
    for name, config in CONFIGS.items():
        cells = [used_op(config, make, x) for make, x in KINDS.values()]
        yield f"| {name} | " + " | ".join(cells) + " |"


def kernels() -> Iterator[str]:
    yield "| op | CPU | CUDA | compile, export | gradient |"
    yield "|---|---|---|---|---|"
    folder = Path(ao_kernels.__file__).parent
    for name, op in sorted(OPS.items()):
        cpu = "C++" if (folder / "cpu" / f"{name}.py").exists() else "reference"
        on_gpu = {"cuda": "CUDA C++", "triton": "Triton"}
        found = [text for b, text in on_gpu.items() if (folder / b / f"{name}.py").exists()]
        cuda = ", ".join(found) or "reference"
        gradient = "activations, bias" if op._backward is not None else "none needed"
        yield f"| `{name}` | {cpu} | {cuda} | custom op `ao::{name}` | {gradient} |"


def text() -> str:
    """The whole page."""
    parts = [
        "# What runs where",
        "Generated by `python docs/generate_support.py`; do not edit.",
        "## Configs and modules: the op that a converted weight calls",
        "\n".join(formats()),
        "## Ops and kernels",
        "\n".join(kernels()),
        NOTES.strip(),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
