"""What the tests of checkpoints save, and how they compare it with what they load."""

import torch
from grouped_example import GroupedExample
from torch import Tensor, nn

from ao_core.tensor import QTensor
from ao_core.testing.example_format import ExampleTensor

__all__ = ["assert_same", "same", "state", "weight"]


def weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def state() -> dict[str, Tensor]:
    """One of everything: formats, an absent optional field, experts, plain tensors."""
    return {
        "embed.weight": ExampleTensor.from_float(weight(24, 16)),
        "a.weight": GroupedExample.from_float(weight(6, 40, seed=1, dtype=torch.bfloat16)),
        "a.bias": weight(6, seed=2),
        "b.weight": GroupedExample.from_float(weight(5, 17, seed=3), bits=3, mapping="symmetric"),
        "experts": ExampleTensor.from_float(weight(2, 8, 16, seed=4)),
        "steps": torch.tensor(7),
    }


def same(a: Tensor, b: Tensor) -> bool:
    """One format, dtype, shape, metadata and bits."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        ours, theirs = a.tensors(), b.tensors()
        equal = a.metadata() == b.metadata() and set(ours) == set(theirs)
        return equal and all(same(t, theirs[name]) for name, t in ours.items())
    if a.numel() == 0:
        return True
    return torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        got, t = (
            x.data if isinstance(x, nn.Parameter) and not isinstance(x, QTensor) else x
            for x in (found[name], t)
        )
        assert same(got, t), name
