"""Checkpoints of every format as version 0.1 of the packages wrote them: kept for ever, and read.

python tests/test_golden.py     writes them anew; for a new format version only
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ao_core import checkpoint
from ao_core.tensor import QTensor
from ao_quant import Int8Tensor, IntxTensor, PerGroup, PerTensor

GOLDEN = Path(__file__).with_name("golden")


def weights() -> dict[str, torch.Tensor]:
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


@pytest.mark.parametrize("name", list(weights()))
def test_reading(name: str) -> None:
    found, expected = checkpoint.load(GOLDEN / "0.1.safetensors")[name], weights()[name]
    assert isinstance(found, QTensor) and isinstance(expected, QTensor)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert torch.equal(found.dequantize(), expected.dequantize())


def test_writing(tmp_path: Path) -> None:
    """While the format version is what it was, today's bytes are those of then."""
    checkpoint.save(weights(), tmp_path / "now.safetensors")
    now = (tmp_path / "now.safetensors").read_bytes()
    assert now == (GOLDEN / "0.1.safetensors").read_bytes()


if __name__ == "__main__":
    checkpoint.save(weights(), GOLDEN / "0.1.safetensors")
