"""What a call of a small linear costs on the host of a GPU, in bf16 and in every format.

    python benchmarks/host_cost.py

Wall time a call for one token in eager mode, of `F.linear` and of `torch.nn.Linear`, which adds
what a module costs; the device is not waited for: its work is shorter than the call. Median of 9
rounds in an order drawn anew each round, and the range between the 10th and the 90th percentile.
"""

import random
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ao_core.config import AOBaseConfig
from ao_core.granularity import PerRow, PerTensor
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

FEATURES = 1024
CALLS, ROUNDS = 400, 9
CONFIGS: dict[str, AOBaseConfig | None] = {
    "bf16": None,
    "int4 weight-only": Int4WeightOnlyConfig(),
    "int8 weight-only": Int8WeightOnlyConfig(),
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "float8 weight-only": Float8WeightOnlyConfig(),
    "float8 dynamic, rows": Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    "float8 dynamic, tensor": Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor()),
}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    x = torch.randn(1, FEATURES, device="cuda").bfloat16()
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, config in CONFIGS.items():
        linear = layer(config)
        calls[name, "F.linear"] = lambda w=linear.weight: F.linear(x, w)
        calls[name, "nn.Linear"] = lambda linear=linear: linear(x)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    order = random.Random(0)
    with torch.inference_mode():
        for call in calls.values():
            time_calls(call)  # compiles
        for _ in range(ROUNDS):
            for key in order.sample(list(calls), len(calls)):
                samples[key].append(time_calls(calls[key]))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, us a call on the host")
    print(f"{'':22s} {'F.linear':22s} nn.Linear")
    for name in CONFIGS:
        cells = [spread(samples[name, what]) for what in ("F.linear", "nn.Linear")]
        print(f"{name:22s} {cells[0]:22s} {cells[1]}")


def spread(values: list[float]) -> str:
    values = sorted(values)
    low, median, high = values[ROUNDS // 10], values[ROUNDS // 2], values[-1 - ROUNDS // 10]
    return f"{median:5.1f} [{low:.1f}..{high:.1f}]"


def layer(config: AOBaseConfig | None) -> nn.Linear:
    linear = nn.Linear(FEATURES, FEATURES, bias=False, device="cuda", dtype=torch.bfloat16)
    if config is not None:
        quantize_(linear, config)
    return linear


def time_calls(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    took = time.perf_counter() - begin
    torch.cuda.synchronize()
    return took / CALLS * 1e6


if __name__ == "__main__":
    main()
