"""torch.compile without graph breaks, and CUDA graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from layers import EMULATED, emulated, layer
from torch import Tensor, nn

from ao_float8 import Float8Linear, Float8LinearConfig, convert_to_float8_training
from ao_float8.operands import scale_of
from ao_kernels.ops import quantize_tensorwise_both

RECIPES = pytest.mark.parametrize("recipe", EMULATED)


def results(run: nn.Module, module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    module.zero_grad()
    inputs = x.clone().requires_grad_()
    y = run(inputs)
    y.backward(dy)
    return [y.detach(), inputs.grad, *(p.grad.clone() for p in module.parameters())]


@RECIPES
def test_fullgraph_gives_the_same_bits(recipe: str) -> None:
    module = layer(50, 34, EMULATED[recipe])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    shapes = [(20,), (2, 33), (2, 33)]  # the second has other tokens, and N <= M
    for shape in shapes if recipe == "tensorwise" else shapes[:1]:
        x, dy = torch.randn(*shape, 50), torch.randn(*shape, 34)
        both = results(compiled, module, x, dy), results(module, module, x, dy)
        for one, other in zip(*both, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_scales_that_compilers_see_are_those_of_the_op(power_of_two: bool) -> None:
    x = torch.randn(16, 32)
    bad = x.clone()
    bad[3, 3] = float("nan")
    for each in (x, x.bfloat16(), x * 0, x * 1e-38, x * 1e30, bad, x / 0):
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            *_, wanted = quantize_tensorwise_both(each, dtype, None, power_of_two)
            found = scale_of(each, dtype, power_of_two)
            assert torch.equal(found, wanted) or (found.isnan() and wanted.isnan())


def test_inductor() -> None:
    model = nn.Sequential(nn.Linear(32, 48), nn.SiLU())
    convert_to_float8_training(model, config=emulated("tensorwise"))
    compiled = torch.compile(model, fullgraph=True)
    x, dy = torch.randn(24, 32), torch.randn(24, 48)
    both = results(compiled, model, x, dy), results(model, model, x, dy)
    for one, other in zip(*both, strict=True):
        assert (one - other).norm() <= 2e-3 * other.norm()  # SiLU rounds otherwise


@pytest.mark.parametrize(
    "changes",
    [{"weight_cache": cache} for cache in ("off", "step", "scale")] + [{"recompute_casts": True}],
    ids=str,
)
def test_other_caches(changes: dict) -> None:
    module = layer(32, 16, emulated(**changes))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, dy = torch.randn(24, 32), torch.randn(24, 16)
    for _ in range(2):
        both = results(compiled, module, x, dy), results(module, module, x, dy)
        for one, other in zip(*both, strict=True):
            assert torch.equal(one, other)
        with torch.no_grad():
            module.weight.mul_(1.5)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_dynamic(recipe: str) -> None:
    """Two layers: what is a number of a module's to Dynamo, one layer would not show."""
    module = nn.Sequential(layer(32, 48, emulated(recipe)), layer(48, 16, emulated(recipe)))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (24, 40):
        x, dy = torch.randn(n, 32), torch.randn(n, 16)
        both = results(compiled, module, x, dy), results(module, module, x, dy)
        for one, other in zip(*both, strict=True):
            assert torch.equal(one, other)


def test_autocast() -> None:
    module = layer(32, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(24, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = compiled(x), module(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted)


def test_no_grad() -> None:
    module = layer(32, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(24, 32)
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))


def test_equal_casts_of_a_graph_are_merged() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(
        fw_compiler=lambda g, i: make_boxed_func(keep(g, i)),
        partition_fn=min_cut_rematerialization_partition,  # as Inductor's
    )
    a, b = layer(32, 16), layer(32, 16)
    x = torch.randn(24, 32)
    torch.compile(lambda x: a(x) + b(x), fullgraph=True, backend=backend)(x)
    casts = [n for n in graphs[0].graph.nodes if "quantize_tensorwise_both" in str(n.target)]
    products = [n for n in graphs[0].graph.nodes if "float8_matmul" in str(n.target)]
    assert len(casts) == 3, "x, and each weight"
    assert not products  # emulated: in the open


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # of the warm-up
@pytest.mark.parametrize("recipe", list(EMULATED))
@pytest.mark.parametrize("cache", ["pass", "step"])
def test_cuda_graphs(recipe: str, cache: str) -> None:
    """A replay casts new inputs and changed weights."""
    config = Float8LinearConfig.from_recipe_name(recipe)
    config = dataclasses.replace(config, weight_cache=cache)
    layers = nn.Sequential(nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 128)).bfloat16().cuda()
    convert_to_float8_training(layers, config=config, module_filter_fn=lambda m, n: True)
    x = torch.randn(192, 256, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(192, 128, device="cuda", dtype=torch.bfloat16)

    def step() -> Tensor:
        y = layers(x)
        y.backward(dy)
        return y

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            layers.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    layers.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    for _ in range(2):
        with torch.no_grad():
            x.normal_()
            for p in layers.parameters():
                p.mul_(1.25)
                p.grad.zero_()
        graph.replay()
        found = [y.clone(), *(p.grad.clone() for p in layers.parameters())]
        for p in layers.parameters():
            p.grad.zero_()
        wanted = [step().detach(), *(p.grad for p in layers.parameters())]
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
@RECIPES
def test_inductor_on_a_gpu(recipe: str) -> None:
    config = Float8LinearConfig.from_recipe_name(recipe)
    linear = nn.Linear(384, 272, device="cuda", dtype=torch.bfloat16)
    module = Float8Linear.from_float(linear, config)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(200, 384, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(200, 272, device="cuda", dtype=torch.bfloat16)
    both = results(compiled, module, x, dy), results(module, module, x, dy)
    for one, other in zip(*both, strict=True):
        assert (one - other).norm() <= 1e-2 * other.norm()
