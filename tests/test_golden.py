"""Checkpoints of every format as version 0.1 of the packages wrote them: kept for ever, and read.

python tests/test_golden.py     writes them anew; for a new format version only
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ao_core import checkpoint
from ao_core.tensor import QTensor
from ao_quant import (
    Float8Tensor,
    Int8Tensor,
    IntxTensor,
    PerBlock,
    PerGroup,
    PerTensor,
)

GOLDEN = Path(__file__).with_name("golden")


def integers() -> dict[str, torch.Tensor]:
    """Weights whose codes and scales are exact: they do not depend on how a sum is rounded."""
    grid = (torch.arange(2 * 40).reshape(2, 40) * 37 % 15 - 7) * 0.25
    grid[:, ::8] = -2.0  # the largest magnitude of each group
    return {
        "int8.weight": Int8Tensor.from_float(grid * 127 / 8),
        "int8_tensor.weight": Int8Tensor.from_float(grid, granularity=PerTensor()),
        "int8_dynamic.weight": Int8Tensor.from_float(grid.half(), activation="int8_symmetric"),
        "int4.weight": IntxTensor.from_float(grid.bfloat16(), bits=4, granularity=PerGroup(16)),
        "int3.weight": IntxTensor.from_float(
            grid, bits=3, granularity=PerGroup(8), mapping="asymmetric"
        ),
        "int1.weight": IntxTensor.from_float(grid, bits=1, granularity=PerGroup(32)),
        "8da4w.weight": IntxTensor.from_float(
            grid, bits=4, granularity=PerGroup(32), activation="int8_asymmetric"
        ),
        "conv.weight": IntxTensor.from_float(grid[..., None, None], bits=5),
        "experts": IntxTensor.from_float(grid.expand(3, 2, 40), bits=6),
    }


def floats() -> dict[str, torch.Tensor]:
    """float8 weights, and all with static activations, as exact as the others."""
    grid = (torch.arange(6 * 40).reshape(6, 40) * 37 % 15 - 7) * 0.25
    grid[::2, ::8] = 448 / 256  # the largest magnitude of each row, group and block
    x_scale = torch.full((1, 1), 0.5)
    e5m2 = torch.float8_e5m2
    return {
        "float8.weight": Float8Tensor.from_float(grid.bfloat16()),
        "float8_e5m2.weight": Float8Tensor.from_float(
            grid, weight_dtype=e5m2, granularity=PerGroup(16)
        ),
        "float8_tensor.weight": Float8Tensor.from_float(
            grid, granularity=PerTensor(), activation="float8_tensor"
        ),
        "float8_row.weight": Float8Tensor.from_float(grid, activation="float8_row"),
        "float8_block.weight": Float8Tensor.from_float(
            grid, granularity=PerBlock((4, 32)), activation="float8_block"
        ),
        "float8_static.weight": Float8Tensor.from_float(
            grid, granularity=PerTensor(), activation="float8_static", x_scale=x_scale
        ),
        "float8_conv.weight": Float8Tensor.from_float(grid[..., None, None]),
        "float8_experts": Float8Tensor.from_float(grid.expand(3, 6, 40)),
        "int8_static.weight": Int8Tensor.from_float(
            grid * 127 / 8, activation="int8_static", x_scale=x_scale
        ),
        "float8_int4.weight": IntxTensor.from_float(
            grid, bits=4, granularity=PerGroup(32), activation="float8_row"
        ),
    }


FILES = {"0.1.safetensors": integers, "0.1-float8.safetensors": floats}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, make in FILES.items() for name in make()]
)
def test_reading(file: str, name: str) -> None:
    found, expected = checkpoint.load(GOLDEN / file)[name], FILES[file]()[name]
    assert isinstance(found, QTensor) and isinstance(expected, QTensor)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert torch.equal(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("file", FILES)
def test_writing(file: str, tmp_path: Path) -> None:
    """While the format version is what it was, today's bytes are those of then."""
    checkpoint.save(FILES[file](), tmp_path / "now.safetensors")
    now = (tmp_path / "now.safetensors").read_bytes()
    assert now == (GOLDEN / file).read_bytes()


if __name__ == "__main__":
    for file, make in FILES.items():
        checkpoint.save(make(), GOLDEN / file)
