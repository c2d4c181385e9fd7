"""What passes over a compiler's graphs ask of a node."""

from functools import cache
from typing import Any

import torch
from torch import fx

__all__ = ["behind_views", "is_cast", "is_elementwise", "name_of", "numel"]

_CASTS = (
    "quantize_tensorwise_both",
    "quantize_rowwise_both",
    "quantize_block_both",
    "quantize_mx",
)
_VIEWS = ("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "alias", "detach")
_COPIES = ("clone", "_to_copy", "convert_element_type")  # and casts of dtypes: element by element


def is_cast(node: fx.Node) -> bool:
    """One of our casts to codes."""
    return node.op == "call_function" and node.target in _overloads()


@cache
def _overloads() -> frozenset[Any]:
    return frozenset(getattr(torch.ops.ao, name).default for name in _CASTS)


def name_of(node: fx.Node) -> str:
    """That of the op, without its overload; "" of other nodes."""
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "")


def behind_views(node: fx.Node) -> fx.Node:
    """What a chain of views begins with."""
    while node.op == "call_function" and name_of(node) in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def is_elementwise(node: fx.Node) -> bool:
    """An op that makes each element of elements of its inputs, or a view."""
    if node.op != "call_function":
        return False
    is_pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return is_pointwise or name_of(node) in _VIEWS + _COPIES


def numel(node: fx.Node) -> int:
    """Elements of a tensor, as far as they are known; 0 of others."""
    value = node.meta.get("val")
    size = value.numel() if isinstance(value, torch.Tensor) else 0
    return size if isinstance(size, int) else size.node.hint or 0  # a guess adds no guard
