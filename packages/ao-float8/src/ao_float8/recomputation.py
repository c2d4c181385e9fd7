"""What a compiled graph saves for backward, where the compiler's partitioner would save more.

The partitioner takes our casts for costly, and saves whatever they give. Before it looks, this pass
goes over the graph of forward and backward together:

* The input of the layer behind attention is a copy of what attention's backward reads anyway.
  Backward copies it again, and casts the copy in the direction that it needs, instead of saving
  copy or codes: 2 to 4 bytes an element moved for 1 or 2 saved.
* SiLU x up, the input of the layer that reads it, is made element by element of two results that
  their derivatives read anyway: it is made again in the kernel of these, and cast in the direction
  that is needed.
* Casts that `recompute_casts=True` left to backward stay there, and what makes their inputs from
  saved tensors, element by element, is computed again with them.

What kernels then write over what they read last is the matter of `reuse.py`.

A graph in which something is marked already (activation checkpointing) is left as it is.
"""

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx

from .graph import behind_views, is_cast, is_elementwise, name_of, numel
from .reuse import write_in_place

__all__ = ["compile_options", "save_less"]

aten = torch.ops.aten
_SMALL = 16  # a tensor of fewer elements than a 16th of what is made of it is saved: of reductions


def compile_options(*, recompute: bool = True) -> dict[str, Any]:
    """Options of `torch.compile` with which a float8 model trains in less memory:

    torch.compile(model, options=compile_options())

    For others beside them, `options={**compile_options(), ...}`.

    Args:
        recompute: also make again in backward what is made of saved tensors alone, for the least
            memory (`save_less`; it also does what `recompute_casts=True` of a config promises).
            Without, nothing is computed twice, and steps are the fastest (`write_in_place`).
    """
    options = {"post_grad_custom_post_pass": _inductor_pass(write_in_place)}
    if recompute:
        options["joint_custom_post_pass"] = _inductor_pass(save_less)
    return options


@cache
def _inductor_pass(change: Callable[[fx.Graph], None]) -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    from . import graph as helpers
    from . import reuse

    files = (__file__, helpers.__file__, reuse.__file__)

    class Pass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            change(graph)

        def uuid(self) -> Any:
            return get_hash_for_files(files, change.__name__)

    return Pass()


def save_less(graph: fx.Graph) -> None:
    """Mark and split nodes of a joint graph so that less is saved; results keep their bits."""
    casts = [n for n in graph.nodes if is_cast(n)]
    if not casts or any("recompute" in n.meta for n in graph.nodes):
        return
    backward = _behind_tangents(graph)
    forward = _of_forward(graph, backward)
    for node in casts:
        x = node.args[0]
        if node in backward or x.op != "call_function":  # of a gradient; of a weight
            continue
        late = {user for user in node.users if user not in forward}
        copied = _copy_of_saved(x, backward)
        again: list[fx.Node] = []
        if len(late) == len(node.users):
            again = [node, *_producers(x)]
        elif copied is not None:
            again = [copied]
            if late:
                _split(graph, node, late)
        elif late and _is_of_saved(x, backward) and _split(graph, node, late):
            again = list(_producers(x))
        for each in again:
            _recompute(each)


def _behind_tangents(graph: fx.Graph) -> set[fx.Node]:
    """What backward alone can compute."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_tangent = node.op == "placeholder" and "tangents" in str(node.target)
        if is_tangent or any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def _of_forward(graph: fx.Graph, backward: set[fx.Node]) -> set[fx.Node]:
    """What the results of forward are made from."""
    found: set[fx.Node] = set()
    (output,) = graph.find_nodes(op="output")
    pending = [node for node in output.all_input_nodes if node not in backward]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _copy_of_saved(x: fx.Node, backward: set[fx.Node]) -> fx.Node | None:
    """The copy behind x, if x is a view of a copy of a result that backward reads anyway and that
    is costly to make."""
    copy = behind_views(x)
    if name_of(copy) != "clone":
        return None
    source = behind_views(copy.args[0])  # type: ignore[arg-type]
    # of several results of an op, attention's
    if source.target is not operator.getitem or is_cast(source.args[0]):  # type: ignore[arg-type]
        return None
    readers = [source]
    for each in readers:
        if any(user in backward for user in each.users):
            return copy
        readers += [user for user in each.users if name_of(user) in ("alias", "detach")]
    return None


def _is_of_saved(x: fx.Node, backward: set[fx.Node]) -> bool:
    """Whether x is made element by element, of nothing but results of its size that derivatives of
    the same elements read in backward: SiLU x up. What also reads something smaller, that a
    reduction gave (a norm), backward would make in a kernel of its own."""
    made = set(_producers(x))
    if not any(torch.Tag.pointwise in getattr(node.target, "tags", ()) for node in made):
        return False
    starts = {each for node in made for each in node.all_input_nodes} - made
    if any(numel(each) != numel(x) for each in starts):
        return False
    alike = _made_of(starts, numel(x), backward)
    return all(_is_read(each, alike, backward) for each in starts)


def _made_of(starts: set[fx.Node], size: int, backward: set[fx.Node]) -> set[fx.Node]:
    """These, and what forward or backward makes element by element of them alone."""
    found, pending = set(starts), list(starts)
    while pending:
        for user in pending.pop().users:
            if user in found or user in backward or not is_elementwise(user):
                continue
            if all(each in found for each in user.all_input_nodes if numel(each) == size):
                found.add(user)
                pending.append(user)
    return found


def _is_read(start: fx.Node, alike: set[fx.Node], backward: set[fx.Node]) -> bool:
    """Whether a derivative reads it, or what is made of it alone."""
    seen, pending = {start}, [start]
    while pending:
        for user in pending.pop().users:
            if user in backward and is_elementwise(user):
                return True
            if user in alike and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _producers(x: fx.Node) -> Iterator[fx.Node]:
    """What makes x element by element, back to what is saved."""
    most, seen, pending = numel(x), set(), [x]
    while pending:
        node = pending.pop()
        if node in seen or node.op != "call_function" or numel(node) * _SMALL < most:
            continue
        seen.add(node)
        if is_elementwise(node):
            yield node
            pending.extend(node.all_input_nodes)


def _recompute(node: fx.Node) -> None:
    from torch.utils.checkpoint import CheckpointPolicy

    node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
    node.meta["ac_graph_id"] = 0


def _split(graph: fx.Graph, node: fx.Node, late: set[fx.Node]) -> bool:
    """A cast in both directions as one by rows, and one by columns that backward computes; whether
    it was one."""
    schema = node.target._schema  # type: ignore[union-attr]
    arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    arguments |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    arguments |= node.kwargs
    names = [a.name for a in schema.arguments]
    n_columns = {3: (1,), 4: (2, 3)}[len(schema.returns)]  # which results are of the columns
    if arguments["outputs"] != "both" or any(user.args[1] not in n_columns for user in late):
        return False
    made = {}
    for outputs in ("rows", "columns"):
        args = tuple({**arguments, "outputs": outputs}[name] for name in names)
        with graph.inserting_before(node):
            made[outputs] = graph.call_function(node.target, args)  # type: ignore[arg-type]
        made[outputs].meta = {k: v for k, v in node.meta.items() if k != "eager_input_vals"}
        values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in args]
        with values[0].fake_mode:
            made[outputs].meta["val"] = node.target(*values)  # type: ignore[operator]
    _recompute(made["columns"])
    for user in list(node.users):
        user.args = (made["columns" if user in late else "rows"], user.args[1])
        user.meta["val"] = user.args[0].meta["val"][user.args[1]]
    graph.erase_node(node)
    return True
