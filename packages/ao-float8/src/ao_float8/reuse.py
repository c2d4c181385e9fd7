"""Where a compiled kernel writes the inputs of our casts.

A cast is an op of its own, so its input is written to memory first. This pass goes over the graphs
of forward and of backward, each for itself, when Inductor is about to make kernels of them:

* A copy that puts the heads of attention behind one another is written as the cast reads it.
  Otherwise Inductor writes it as it lies, looks for the largest magnitude there, and copies again.
* Inductor writes a result over an input of its kernel only if nothing else that is still to come
  reads that input. Several results that one kernel makes of the same inputs (gradients of gate and
  up, and SiLU x up again) hold each other up. They are put in an order that both sides can see: a
  result refers to the one in front of it, by a condition that is never true, and Inductor finds the
  last that reads each input.

It changes no value, and what may be overwritten is decided by Inductor, which alone knows.
"""

import math

import torch
from torch import fx

from .graph import behind_views, is_cast, is_elementwise, name_of, numel

__all__ = ["write_in_place"]

aten = torch.ops.aten
_MOST = 8  # results of one kernel


def write_in_place(graph: fx.Graph) -> None:
    """Fix where inputs of casts lie, and the order of those that read the same last."""
    inputs = []
    for node in graph.nodes:
        if is_cast(node):
            made = behind_views(node.args[0])
            if made not in inputs and is_elementwise(made) and _is_static(made):
                inputs.append(made)
    for made in inputs:
        if name_of(made) == "clone":
            _written(graph, made)
    for results in _groups(inputs):
        ordered = _order(results)
        before: fx.Node | None = None
        for made in ordered:
            after = made if before is None else _behind(graph, made, before)
            before = _written(graph, after)


def _is_static(node: fx.Node) -> bool:
    """Whether sizes are known: what is inserted here could not take them from the graph."""
    return all(isinstance(size, int) for size in node.meta["val"].shape)


class _Result:
    """An input of a cast, the nodes that make it element by element, and what they start from."""

    def __init__(self, node: fx.Node, stops: set[fx.Node]) -> None:
        self.node = node
        self.nodes: set[fx.Node] = set()
        self.leaves: set[fx.Node] = set()
        pending = [node]
        while pending:
            each = pending.pop()
            if each in self.nodes:
                continue
            if each is node or (is_elementwise(each) and each not in stops):
                self.nodes.add(each)
                pending.extend(each.all_input_nodes)
            elif numel(each) == numel(node) and _dtype(each) == _dtype(node):
                self.leaves.add(each)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _groups(inputs: list[fx.Node]) -> list[list[_Result]]:
    """Results that read the same tensors last and that one kernel can make."""
    results = [_Result(node, set(inputs)) for node in inputs]
    every = {node for result in results for node in result.nodes}
    for result in results:  # what something else reads is not overwritten
        result.leaves = {leaf for leaf in result.leaves if all(u in every for u in leaf.users)}
    groups: list[list[_Result]] = []
    for result in results:
        for group in groups:
            shared = any(result.leaves & other.leaves for other in group)
            if shared and len(group) < _MOST and all(_fit(result, other) for other in group):
                group.append(result)
                break
        else:
            groups.append([result])
    return [group for group in groups if len(group) > 1]


def _fit(one: _Result, other: _Result) -> bool:
    """Whether one kernel can make both: alike, and neither needs the other."""
    values = [each.node.meta["val"] for each in (one, other)]
    return (
        values[0].dtype == values[1].dtype
        and values[0].shape[-1] == values[1].shape[-1]
        and numel(one.node) == numel(other.node)
        and not _reaches(one.node, other.node)
        and not _reaches(other.node, one.node)
    )


def _reaches(start: fx.Node, end: fx.Node) -> bool:
    """Whether `end` needs `start`."""
    seen, pending = {end}, [end]
    while pending:
        for each in pending.pop().all_input_nodes:
            if each is start:
                return True
            if each not in seen:
                seen.add(each)
                pending.append(each)
    return False


def _order(results: list[_Result]) -> list[fx.Node]:
    """From the last: each should read something that nothing behind it reads, and little else,
    which leaves most to those in front."""
    remaining, read, ordered = list(results), set[fx.Node](), list[fx.Node]()
    while remaining:
        new = [len(each.leaves - read) or math.inf for each in remaining]
        last = max(i for i, n in enumerate(new) if n == min(new))
        result = remaining.pop(last)
        read |= result.leaves
        ordered.insert(0, result.node)
    return ordered


def _written(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The node as a buffer without gaps in the order of its dimensions."""
    from torch._inductor import inductor_prims

    value = node.meta["val"]
    stride = [math.prod(value.shape[i + 1 :]) for i in range(value.ndim)]
    with graph.inserting_after(node):
        made = graph.call_function(inductor_prims.force_stride_order, (node, stride))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    made.meta = dict(node.meta)
    return made


def _behind(graph: fx.Graph, node: fx.Node, before: fx.Node) -> fx.Node:
    """The node, such that it needs `before`: where that is larger than infinity, it would be it."""
    value = node.meta["val"]
    with graph.inserting_after(node):  # Inductor sorts the graph, `before` may stand behind
        other = graph.call_function(aten.view.default, (before, list(value.shape)))
    with graph.inserting_after(other):
        never = graph.call_function(aten.gt.Scalar, (other, math.inf))
    with graph.inserting_after(never):
        made = graph.call_function(aten.where.self, (never, other, node))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    for each in (other, never, made):
        each.meta = {k: v for k, v in node.meta.items() if k != "eager_input_vals"}
    with value.fake_mode:
        never.meta["val"] = torch.empty_like(value, dtype=torch.bool)
    return made
