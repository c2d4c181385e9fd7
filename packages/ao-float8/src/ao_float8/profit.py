"""Which layers gain from float8: measured times where there is a table of the GPU, else a count.

M tokens of a forward pass, N output features, K input features. A table,
`tuned/<name of the GPU>.json`, is written by `benchmarks/bench_float8_linear.py`: forward and
backward of one bfloat16 linear, and of each recipe, over a grid of M, N and K.

Between measured points the logarithm of the ratio is linear in the logarithms of M, N and K;
outside of the grid the nearest point stands. A layer is converted where the ratio is at least
`LEAST`.

Blocks of 128 x 128 go to the library where 512 divides N and K, and 128 divides M. Elsewhere a
Triton kernel multiplies, at half the speed: such layers stay in bfloat16, whatever a table says of
their neighbours.

Without a table, times are counted: floating-point operations over what a Hopper GPU's libraries
reach, bytes of the casts over its bandwidth, and a constant a launch.
"""

import bisect
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import RECIPES, Float8LinearConfig
from .operands import BLOCK

__all__ = ["LEAST", "TOKENS", "Verdict", "judge", "path_of"]

LEAST = 1.03  # closer than this is noise
TOKENS = 8192  # a forward pass of one GPU, where the caller does not say
FORMAT = 1
_UNDIVIDED = 0.6  # 11008 x 11008, measured on an H200
_FOLDER = Path(__file__).parent / "tuned"

Point = tuple[int, int, int]


@dataclass(frozen=True)
class Verdict:
    """How a recipe compares with bfloat16 in one layer: `ratio` times its speed."""

    ratio: float
    M: int
    N: int
    K: int
    source: str

    @property
    def wins(self) -> bool:
        return self.ratio >= LEAST

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f} x the speed of bf16 at {self.M} tokens of {self.N} x {self.K} "
            f"({self.source})"
        )


def judge(
    config: Float8LinearConfig, N: int, K: int, *, tokens: int, device: torch.device
) -> Verdict:
    """What a layer (N, K) would gain with so many tokens on a device; on a CPU or the meta device,
    on the GPU that is there."""
    name = _gpu(device)
    recipe = _recipe(config)
    ratios = None if name is None or recipe is None else _table(name).get(recipe)
    divides = tokens % BLOCK == 0 and N % (4 * BLOCK) == 0 and K % (4 * BLOCK) == 0
    if config.scaling == "blockwise" and not divides:
        ratio, source = _UNDIVIDED, f"{4 * BLOCK} divides not both sizes, or {BLOCK} not the tokens"
    elif ratios:
        ratio, source = _between(ratios, (tokens, N, K)), f"measured on {name}"
    else:
        ratio, source = _counted(config, tokens, N, K), "counted for a Hopper GPU, not measured"
    return Verdict(ratio, tokens, N, K, source)


def path_of(gpu: str) -> Path:
    """The table of a GPU of this name."""
    return _FOLDER / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def _gpu(device: torch.device) -> str | None:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # asking whether there is a GPU does not wake it up
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _recipe(config: Float8LinearConfig) -> str | None:
    """The recipe whose times are those of a config, if there is one: scaling and wgrad decide."""
    for name, recipe in RECIPES.items():
        if (recipe.scaling, recipe.grad_weight_in_high_precision) == (
            config.scaling,
            config.grad_weight_in_high_precision,
        ):
            return name
    return None


@functools.cache
def _table(gpu: str) -> dict[str, dict[Point, float]]:
    """Recipe -> (M, N, K) -> ratio; empty where nothing was measured."""
    path = path_of(gpu)
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    if data["format"] != FORMAT:
        raise ValueError(f"{path.name} has format {data['format']}; this release reads {FORMAT}")
    found: dict[str, dict[Point, float]] = {}
    for row in data["rows"]:
        for recipe, us in row["us"].items():
            if us is not None:
                point = (row["M"], row["N"], row["K"])
                found.setdefault(recipe, {})[point] = row["bf16_us"] / us
    return found


def _between(ratios: dict[Point, float], point: Point) -> float:
    """Interpolated from the corners of the measured cell that a point lies in."""
    axes = [sorted({measured[axis] for measured in ratios}) for axis in range(3)]
    total, weights = 0.0, 0.0
    for corner in itertools.product(
        *(list(_neighbours(axis, at)) for axis, at in zip(axes, point, strict=True))
    ):
        weight = math.prod(share for _, share in corner)
        ratio = ratios.get(tuple(value for value, _ in corner))  # type: ignore[arg-type]
        if ratio is not None and weight:
            total += weight * math.log(ratio)
            weights += weight
    if not weights:  # a hole in the grid: the nearest point

        def distance(other: Point) -> float:
            return sum(abs(math.log(a / b)) for a, b in zip(other, point, strict=True))

        return ratios[min(ratios, key=distance)]
    return math.exp(total / weights)


def _neighbours(axis: list[int], at: int) -> Iterator[tuple[int, float]]:
    """The measured values around a value, with their shares."""
    index = bisect.bisect_left(axis, at)
    if index == len(axis) or index == 0 or axis[index] == at:
        yield axis[min(index, len(axis) - 1)], 1.0
        return
    low, high = axis[index - 1], axis[index]
    share = math.log(at / low) / math.log(high / low)
    yield low, 1 - share
    yield high, share


# --- without a table

# Operations a second of large products; those of MX multiply in bfloat16 on such a GPU.
_BF16 = 700e12
_RATES = {
    "tensorwise": 1350e12,
    "rowwise": 1350e12,
    "blockwise": 1000e12,
    "mx": 600e12,
    "int8": 850e12,
}
_BANDWIDTH, _LAUNCH = 2.6e12, 6e-6  # bytes a second of casts, seconds a launch
_CASTS = {"tensorwise": 6, "rowwise": 6, "blockwise": 4, "mx": 4, "int8": 6}  # bytes an element


def _counted(config: Float8LinearConfig, M: int, N: int, K: int) -> float:
    """Times from counts. Casts read an element (once to find its scale, once more to round it
    unless a block is small) and write both directions; a kernel takes at least a launch."""
    flops = 2.0 * M * N * K

    def kernel(seconds: float) -> float:
        return max(seconds, _LAUNCH)

    exact = 3 * kernel(flops / _BF16)
    rate = _RATES[config.scaling]
    quantized = 2 if config.grad_weight_in_high_precision else 3
    ours = quantized * kernel(flops / rate) + (3 - quantized) * kernel(flops / _BF16)
    for elements in (M * K, N * K, M * N):
        ours += kernel(elements * _CASTS[config.scaling] / _BANDWIDTH) + _LAUNCH
    return exact / ours
