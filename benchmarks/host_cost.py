"""What a call of a small linear costs on the host of a GPU, in bf16 and in every format.

    python benchmarks/host_cost.py

Wall time a call of `torch.nn.Linear` for one token in eager mode, the device not waited for: its
work is shorter than the call. Median of 9 rounds in an order drawn anew each round, and the range
between the 10th and the 90th percentile.
"""

import random
import time
from collections.abc import Callable

import torch
from torch import nn

from ao_core.config import AOBaseConfig
from ao_core.granularity import PerRow
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
}


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device")
    x = torch.randn(1, FEATURES, device="cuda").bfloat16()
    layers = {name: layer(config) for name, config in CONFIGS.items()}
    samples: dict[str, list[float]] = {name: [] for name in layers}
    order = random.Random(0)
    with torch.inference_mode():
        for linear in layers.values():
            time_calls(lambda linear=linear: linear(x))  # compiles
        for _ in range(ROUNDS):
            for name in order.sample(list(layers), len(layers)):
                linear = layers[name]
                samples[name].append(time_calls(lambda linear=linear: linear(x)))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, us a call on the host")
    for name, values in samples.items():
        values.sort()
        low, median, high = values[ROUNDS // 10], values[ROUNDS // 2], values[-1 - ROUNDS // 10]
        print(f"{name:22s} {median:6.1f} [{low:.1f}..{high:.1f}]")


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
