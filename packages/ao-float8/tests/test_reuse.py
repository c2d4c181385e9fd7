"""Where compiled kernels write the inputs of casts: graphs before and after the pass, and code."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.fx_passes.post_grad import stable_topological_sort
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from ao_float8 import compile_options, linear
from ao_float8.config import RECIPES
from ao_float8.linear import float8_linear, plan_of
from ao_float8.reuse import write_in_place

R, C = 32, 48


def codes(x: Tensor) -> Tensor:
    cast = torch.ops.ao.quantize_rowwise_both.default
    return cast(x.reshape(-1, x.shape[-1]), torch.float8_e4m3fn, True, "rows")[0]


def derivatives(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """Of g.abs() * u, and it: all read g, two read u, two read dy."""
    return codes(g.abs() * u), codes(dy * u * g.sign()), codes(dy * g.abs())


def also_g(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    return *derivatives(dy, g, u), g.sum(0)


def one_of_the_other(dy: Tensor, g: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    first = codes(dy * u)
    return first, codes(g * u * first.float().sum())


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    found = [torch.randn(2, R // 2, C).bfloat16() for _ in range(3)]
    odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 3e38]).bfloat16()
    for i, x in enumerate(found):
        x.view(-1)[i * 5 : i * 5 + len(odd)] = odd
    return found


@pytest.mark.parametrize(
    ("function", "n_ordered"), [(derivatives, 2), (also_g, 2), (one_of_the_other, 0)]
)
def test_results_are_put_in_an_order_and_keep_their_bits(function: object, n_ordered: int) -> None:
    args = inputs()
    module = make_fx(function, tracing_mode="fake")(*args)
    wanted = module(*args)
    write_in_place(module.graph)
    stable_topological_sort(module.graph)
    module.graph.lint()
    module.recompile()
    ordered = module.graph.find_nodes(op="call_function", target=torch.ops.aten.where.self)
    assert len(ordered) == n_ordered
    for one, other in zip(module(*args), wanted, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def last_readers(graph: torch.fx.Graph, names: list[str]) -> list[str]:
    """For each input the last result that reads it: the number of its cast."""
    found = []
    casts = [n for n in graph.nodes if "quantize" in str(n.target)]
    ordered = [n for n in graph.nodes if "where" in n.name]
    for name in names:
        readers = []
        for i, cast in enumerate(casts):
            pending, seen = [cast.args[0]], set()
            while pending:
                node = pending.pop()
                if node.name == name:
                    readers.append(i)
                if node not in seen:
                    seen.add(node)
                    # not through the reference to the result in front
                    pending += [node.args[2]] if node in ordered else node.all_input_nodes
        found.append(readers)
    return found


def test_two_of_three_results_find_something_to_write_over() -> None:
    """Of three results that read three tensors, the last two are each the last reader of one."""
    module = make_fx(derivatives, tracing_mode="fake")(*inputs())
    write_in_place(module.graph)
    stable_topological_sort(module.graph)
    ordered = [n for n in module.graph.nodes if "where" in n.name]
    casts = [n for n in module.graph.nodes if "quantize" in str(n.target)]
    placeholders = [n.name for n in module.graph.find_nodes(op="placeholder")]
    readers = last_readers(module.graph, placeholders)

    def rank(i: int) -> int:  # how many results stand in front
        node = casts[i].args[0]
        while ("where" not in node.name and "view" in node.name) or "force" in node.name:
            node = node.args[0]
        return 1 + ordered.index(node) if node in ordered else 0

    last = {max(rank(i) for i in each) for each in readers}
    assert last == {1, 2}


def copied(x: Tensor, w: Tensor) -> Tensor:
    return float8_linear(x.transpose(1, 2).flatten(2), w, None, plan_of(RECIPES["tensorwise"]))


def test_a_copy_of_heads_is_written_as_it_is_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "check_device", lambda *_, **__: None)
    B, H, T, D = 2, 4, 64, 16
    torch.manual_seed(0)
    x, w = torch.randn(B, H, T, D).bfloat16(), nn.Linear(H * D, 32).weight.detach().bfloat16()
    written, results = [], []
    for options in ({}, compile_options()):
        torch._dynamo.reset()
        with torch.no_grad():
            y, (code,) = run_and_get_code(torch.compile(copied, options=options), x, w)
        results.append(y)
        written.append(re.findall(r"empty_strided_cpu\((\([\d, ]+\)), .*bfloat16\)", code))
    assert torch.equal(*results)
    assert written[0] == [str((B * T, H * D))]  # beside the pass that looks for the largest
    assert written[1] == [str((B, T, H, D))]
