"""Granularity: which elements share one scale.

PerTensor      one scale for everything
PerAxis(a)     one scale for each index of axis a
PerRow()       one scale for each row: the last dimension shares a scale
PerToken()     PerRow, said of activations
PerGroup(g)    one scale for each g consecutive elements of the last dimension; the last group may
               be shorter
PerBlock(b)    one scale for each block of shape b of the trailing dimensions
"""

from dataclasses import dataclass

from .errors import ConfigError

__all__ = [
    "Granularity",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "block_shape",
]


@dataclass(frozen=True)
class Granularity:
    """Base of all granularities; a value type, equal when its fields are."""


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerRow(Granularity):
    """One scale for each row (all leading dimensions kept, the last one reduced)."""


@dataclass(frozen=True)
class PerToken(Granularity):
    """One scale for each token of an activation of shape (..., K)."""


@dataclass(frozen=True)
class PerAxis(Granularity):
    """One scale for each index of `axis`; every other dimension is reduced."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for each `group_size` consecutive elements of the last dimension."""

    group_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ConfigError(
                f"PerGroup: group_size is a positive integer, got {self.group_size!r}"
            )


@dataclass(frozen=True)
class PerBlock(Granularity):
    """One scale for each block of shape `block_size` of the trailing dimensions."""

    block_size: tuple[int, ...]

    def __post_init__(self) -> None:
        size = tuple(self.block_size)
        if not size or any(not isinstance(n, int) or n < 1 for n in size):
            raise ConfigError(
                f"PerBlock: block_size is a tuple of positive integers, got {self.block_size!r}"
            )
        object.__setattr__(self, "block_size", size)


def block_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """The shape of the block of elements that shares one scale, for a tensor of `shape`.

    A block never exceeds the tensor; blocks at the end of a dimension may be shorter.
    """
    shape = tuple(shape)
    match granularity:
        case PerTensor():
            return shape
        case PerRow() | PerToken():
            return (1,) * (len(shape) - 1) + shape[-1:]
        case PerAxis(axis=axis):
            if not -len(shape) <= axis < len(shape):
                raise ValueError(
                    f"PerAxis: axis {axis} is out of range for a tensor of shape {shape}"
                )
            return tuple(1 if d == axis % len(shape) else n for d, n in enumerate(shape))
        case PerGroup(group_size=g):
            return (1,) * (len(shape) - 1) + (min(g, shape[-1]) or 1,)
        case PerBlock(block_size=block):
            if len(block) > len(shape):
                raise ValueError(
                    f"PerBlock: {block} has more dimensions than the tensor's shape {shape}"
                )
            block = (1,) * (len(shape) - len(block)) + block
            return tuple(min(b, n) or 1 for b, n in zip(block, shape, strict=True))
    raise TypeError(f"unknown granularity {granularity!r}")
