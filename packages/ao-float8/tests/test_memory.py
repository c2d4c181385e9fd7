"""Bytes that forward leaves for backward, of a block like Llama's, without and with a compiler."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from alive import Alive
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from layers import EMULATED, emulated
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.utils import fresh_inductor_cache, run_fw_bw_and_get_code
from torch.utils.checkpoint import checkpoint

from ao_float8 import (
    Float8LinearConfig,
    compile_options,
    convert_to_float8_training,
    linear,
    recomputation,
)
from ao_float8.attention_output import source_of
from ao_float8.cast_cache import GRADIENTS, INPUTS
from ao_float8.config import RECIPES

M, K, FF = 256, 64, 192  # tokens, width, width of the MLP; no layer has more outputs than tokens


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(K, K, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(K, FF, bias=False), nn.Linear(K, FF, bias=False)
        self.down = nn.Linear(FF, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x * 0.5
        q, k, v = (
            p(h).unflatten(-1, (4, -1)).transpose(1, 2).contiguous()
            for p in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = x * 0.5
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def block(config: Float8LinearConfig | None) -> Block:
    torch.manual_seed(0)
    module = Block().bfloat16()
    if config is not None:
        convert_to_float8_training(module, config=config, module_filter_fn=lambda *_: True)
    return module


def inputs() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, M // 2, K).bfloat16().requires_grad_()


# --- without a compiler


def left(config: Float8LinearConfig | None) -> int:
    module, x = block(config), inputs()
    with Alive() as alive:
        y = module(x)
        INPUTS.forget()
        GRADIENTS.forget()
        nbytes = alive.nbytes
        y.sum().backward()
    assert x.grad is not None
    return nbytes


def test_wgrad_in_high_precision_saves_less_than_bfloat16() -> None:
    """Inputs as bfloat16 saves them, but that of the layer behind attention; no codes."""
    assert left(None) - left(EMULATED["rowwise_with_gw_hp"]) == 2 * M * K


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_codes_of_inputs_and_weights_are_less_than_inputs(recipe: str) -> None:
    scales = 4 * (3 * K + FF) + 4 * (7 * K + 2 * FF)
    wins = M * (3 * K + FF)  # h twice, o's input and down's, as codes
    costs = 4 * K * K + 3 * K * FF  # codes of all weights, whose N <= M
    saved = left(None) - left(EMULATED[recipe])
    assert wins - costs - scales - 4096 <= saved <= wins - costs


@pytest.mark.parametrize("config", [{}, {"recompute_casts": True}], ids=str)
def test_gradients_from_what_attention_saves(config: dict[str, Any]) -> None:
    recipe = "rowwise" if config else "rowwise_with_gw_hp"
    module = block(emulated(recipe, **config))
    grads = []
    for how in ("as it is", "copied"):
        module.zero_grad()
        x = inputs()
        handle = None
        if how == "copied":  # a tensor of another history: saved as it is
            handle = module.o.register_forward_pre_hook(lambda _, args: (args[0] * 1,))
        module(x).sum().backward()
        if handle is not None:
            handle.remove()
        grads.append([x.grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def attention(q: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def test_sources() -> None:
    y = attention(torch.randn(2, 4, 16, 8, requires_grad=True))
    for x in (
        y.transpose(1, 2).flatten(2),
        y.transpose(1, -2).contiguous().view(2, 16, 32),
        y.transpose(-3, -2).reshape(2, 16, -1).contiguous(),
        y.transpose(1, 2).reshape(32, 32),
    ):
        source = source_of(x)
        assert source is not None and torch.equal(source.copy(x.shape), x)
        assert source.output.data_ptr() == y.data_ptr()
    changed = y.transpose(1, 2).flatten(2)
    changed.detach().mul_(2)
    others = (changed, y, y * 2, y.flatten(2), y.detach(), (y * 2).transpose(1, 2).flatten(2))
    assert all(source_of(x) is None for x in others)


def test_no_source_where_the_output_is_gone_or_held_by_hooks() -> None:
    q = torch.randn(2, 4, 16, 8, requires_grad=True)
    y = attention(q)
    x = y.transpose(1, 2).flatten(2)
    x.sum().backward()
    assert source_of(x) is None
    n_runs = 0

    def run(q: Tensor) -> Tensor:
        nonlocal n_runs
        n_runs += 1
        return attention(q)

    x = checkpoint(run, q, use_reentrant=False).transpose(1, 2).flatten(2)
    assert source_of(x) is None and n_runs == 1


# --- with a compiler


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are ops in the graph, as on a GPU; emulated ones are not, and would be looked into.
    A CPU runs the references of these ops."""
    monkeypatch.setattr(linear, "check_device", lambda *_, **__: None)


def compiled(config: Float8LinearConfig | None, *, changed: bool = True) -> tuple[int, list[str]]:
    """Bytes that the graph of forward saves beside its inputs, and the casts in backward."""
    graphs: list[tuple[int, torch.fx.GraphModule]] = []

    def partition(joint: Any, args: Any, *, num_fwd_outputs: int, **kwargs: Any) -> Any:
        with torch._inductor.config.patch(compile_options() if changed else {}):
            joint_graph_passes(joint)
        parts = min_cut_rematerialization_partition(
            joint, args, num_fwd_outputs=num_fwd_outputs, **kwargs
        )
        graphs.extend((num_fwd_outputs, part) for part in parts)
        return parts

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    module, x = block(config), inputs()
    torch._dynamo.reset()
    y = torch.compile(module, fullgraph=True, backend=backend)(x)
    y.sum().backward()
    wanted, z = block(config), inputs()
    wanted(z).sum().backward()
    for one, other in zip(module.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=0.05)
    (n_results, forward), (_, backward) = graphs
    (output,) = forward.graph.find_nodes(op="output")
    saved = [n for n in output.args[0][n_results:] if n.op != "placeholder"]
    nbytes = sum(n.meta["val"].nbytes for n in saved if isinstance(n.meta["val"], Tensor))
    casts = [n for n in backward.graph.nodes if "quantize" in str(n.target)]
    return nbytes, [str(n.args[-1]) for n in casts]


def test_compiled_wgrad_in_high_precision_saves_less_than_bfloat16(ops: None) -> None:
    bfloat16, _ = compiled(None)
    assert bfloat16 - compiled(RECIPES["rowwise_with_gw_hp"])[0] >= 2 * M * K


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])  # three results and four
def test_compiled_codes_are_made_again(recipe: str, ops: None) -> None:
    """Of the attention's output, and of SiLU x up; not of what the layers in front read, which
    backward would have to read for that alone."""
    before, casts = compiled(RECIPES[recipe], changed=False)
    after, more = compiled(RECIPES[recipe])
    # scales of 128 codes; the two of tensors were not saved, and are read in backward now
    scales = {"tensorwise": -2 * 4, "blockwise": 4 * (K + FF) * M // 128}[recipe]
    assert before - after == M * (K + FF) + scales
    assert more.count("columns") == casts.count("columns") + 2


def test_compiled_recompute_casts_saves_no_input(ops: None) -> None:
    """What is left are results of products and of attention: q, k, v, its output and their sums of
    exponentials, what o gave, gate and up."""
    config = dataclasses.replace(RECIPES["rowwise"], recompute_casts=True)
    after, casts = compiled(config)
    n_heads = 4
    assert after == 2 * M * (5 * K + 2 * FF) + 4 * n_heads * M
    assert casts.count("columns") >= 4
    assert compiled(config, changed=False)[0] > after


Shapes = list[tuple[int, ...]]


def allocated(options: dict[str, Any], config: Float8LinearConfig) -> tuple[Shapes, list[Tensor]]:
    """Shapes of bfloat16 that the compiled backward allocates, and the gradients."""
    module, x = block(config), inputs()
    torch._dynamo.reset()
    run = torch.compile(module, fullgraph=True, options=options)
    _, (_, backward) = run_fw_bw_and_get_code(lambda: run(x))
    found = re.findall(r"= empty_strided_cpu\(\(([\d, ]*)\), .*bfloat16\)", backward)
    assert x.grad is not None
    return [tuple(map(int, f.split(", "))) for f in found], [p.grad for p in module.parameters()]


@pytest.mark.parametrize("recomputes", [False, True])
def test_backward_writes_over_gate_and_the_gradient(recomputes: bool, ops: None) -> None:
    """Of gradients of gate and up, and SiLU x up again, none is allocated but the last, where the
    compiler alone writes one over what it has read, and none if SiLU x up reads it, too."""
    config = dataclasses.replace(RECIPES["rowwise"], recompute_casts=recomputes)
    recompute = {k: v for k, v in compile_options().items() if k.startswith("joint")}
    alone, wanted = allocated(recompute if recomputes else {}, config)
    shapes, grads = allocated(compile_options(recompute=recomputes), config)

    def n_wide(shapes: Shapes) -> int:
        return sum(math.prod(shape) == M * FF for shape in shapes)

    assert (n_wide(alone), n_wide(shapes)) == ((3, 1) if recomputes else (1, 0))
    for one, other in zip(grads, wanted, strict=True):
        assert torch.equal(one, other)


def test_options_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes them and calls the pass; what it had before is there again."""
    calls = []
    for name in ("save_less", "write_in_place"):
        change = functools.partial(lambda name, graph: calls.append(name), name)
        change.__name__ = name  # type: ignore[attr-defined]
        monkeypatch.setattr(recomputation, name, change)
    for recompute in (False, True):
        x = torch.randn(8, 32, requires_grad=True)
        calls.clear()
        torch._dynamo.reset()
        run = torch.compile(nn.Linear(32, 16), options=compile_options(recompute=recompute))
        with fresh_inductor_cache():
            run(x).sum().backward()
        assert calls == ["save_less"] * recompute + ["write_in_place"] * 2
    assert torch._inductor.config.joint_custom_post_pass is None
    assert torch._inductor.config.post_grad_custom_post_pass is None
