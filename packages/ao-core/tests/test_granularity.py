"""Granularities, against the meaning of each, element by element."""

import itertools
from typing import Any

import pytest

from ao_core.errors import ConfigError
from ao_core.granularity import (
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    block_shape,
)

SHAPES = ((6,), (4, 6), (1, 7), (2, 3, 5), (0, 4), (4, 0))


def key(index: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Equal for two elements that share a scale."""
    match granularity:
        case PerTensor():
            return ()
        case PerRow() | PerToken():
            return index[:-1]
        case PerAxis(axis=axis):
            return (index[axis],)
        case PerGroup(group_size=g):
            return (*index[:-1], index[-1] // g)
        case PerBlock(block_size=block):
            lead = len(index) - len(block)
            return (*index[:lead], *(i // b for i, b in zip(index[lead:], block, strict=True)))
    raise AssertionError


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "granularity",
    [
        *(PerTensor(), PerRow(), PerToken(), PerAxis(), PerAxis(-1)),
        *(PerGroup(1), PerGroup(2), PerGroup(4), PerGroup(100)),
        *(PerBlock((2,)), PerBlock((100,)), PerBlock((2, 3))),
    ],
    ids=repr,
)
def test_blocks_hold_what_shares_a_scale(granularity: Granularity, shape: tuple[int, ...]) -> None:
    if isinstance(granularity, PerBlock) and len(granularity.block_size) > len(shape):
        with pytest.raises(ValueError, match="has more dimensions than the tensor's shape"):
            block_shape(shape, granularity)
        return
    block = block_shape(shape, granularity)
    assert len(block) == len(shape)
    if 0 in shape:
        return
    assert all(1 <= b <= n for b, n in zip(block, shape, strict=True))
    owner: dict[tuple[int, ...], tuple[int, ...]] = {}
    for index in itertools.product(*map(range, shape)):
        cell = tuple(i // b for i, b in zip(index, block, strict=True))
        assert owner.setdefault(cell, key(index, granularity)) == key(index, granularity)
    assert len(set(owner.values())) == len(owner)


def test_axis_out_of_range() -> None:
    with pytest.raises(ValueError, match="axis 2 is out of range for a tensor of shape"):
        block_shape((3, 4), PerAxis(2))
    with pytest.raises(TypeError, match="unknown granularity"):
        block_shape((3, 4), Granularity())


@pytest.mark.parametrize("value", [0, -8, 1.5, "8", None])
def test_group_size_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(ConfigError, match="PerGroup: group_size is a positive integer, got"):
        PerGroup(value)


@pytest.mark.parametrize("value", [(), (0,), (2, -1), (2, 1.5), ("2",)])
def test_block_size_is_a_tuple_of_positive_integers(value: Any) -> None:
    with pytest.raises(ConfigError, match="PerBlock: block_size is a tuple of positive integers"):
        PerBlock(value)


def test_values_compare_and_hash() -> None:
    assert PerGroup(8) == PerGroup(8) != PerGroup(16)
    assert PerBlock([2, 3]) == PerBlock((2, 3))  # type: ignore[arg-type]
    assert PerRow() != PerToken() != PerTensor()
    assert len({PerAxis(0), PerAxis(0), PerAxis(1)}) == 2
