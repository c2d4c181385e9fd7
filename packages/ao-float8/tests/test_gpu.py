"""On a GPU: numbers beside those of the CPU, no waiting for the device, memory."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from layers import EMULATED, counted
from torch import Tensor, nn

from ao_float8 import (
    Float8Linear,
    Float8LinearConfig,
    compile_options,
    convert_to_float8_training,
)
from ao_float8.config import RECIPES
from ao_float8.experts import convert_experts_to_float8_training, float8_grouped_mm
from ao_float8.linear import plan_of
from ao_float8.operands import cast

pytestmark = pytest.mark.gpu
EVERY = pytest.mark.parametrize("recipe", RECIPES)


def results(module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], dy)]


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sizes", [(512, 384, 640), (77, 130, 45), (1, 16, 16)], ids=str)
def test_numbers_are_those_of_the_cpu(
    recipe: str, dtype: torch.dtype, sizes: tuple[int, int, int]
) -> None:
    M, N, K = sizes
    linear = nn.Linear(K, N, dtype=dtype)
    x, dy = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    wanted = results(Float8Linear.from_float(linear, EMULATED[recipe]), x, dy)
    module = Float8Linear.from_float(linear, Float8LinearConfig.from_recipe_name(recipe)).cuda()
    found = results(module, x.cuda(), dy.cuda())
    for name, one, other in zip(("y", "dx", "dw", "db"), found, wanted, strict=True):
        assert one.dtype == other.dtype
        error = (one.cpu().float() - other.float()).norm()
        assert error <= 6e-3 * other.float().norm() + 1e-6, name


@EVERY
def test_emulated_is_the_same_on_every_device(recipe: str) -> None:
    linear = nn.Linear(192, 128, dtype=torch.bfloat16)
    module = Float8Linear.from_float(linear, EMULATED[recipe])
    x, dy = torch.randn(64, 192).bfloat16(), torch.randn(64, 128).bfloat16()
    wanted = results(module, x, dy)
    found = results(module.cuda(), x.cuda(), dy.cuda())
    for one, other in zip(found, wanted, strict=True):
        assert (one.cpu().float() - other.float()).norm() <= 4e-3 * other.float().norm()


@EVERY
def test_codes_are_those_of_emulation(recipe: str) -> None:
    """Bit for bit: what the real path multiplies on a GPU, and what emulation does on a CPU."""
    plan, emulated = plan_of(RECIPES[recipe]), plan_of(EMULATED[recipe])
    for x in (torch.randn(300, 210).bfloat16(), torch.randn(128, 256) * 1e-3):
        for role, is_weight in (("input", False), ("weight", True), ("grad_output", False)):
            dtype = getattr(plan, f"{role}_dtype")
            found = cast(x.cuda(), dtype, plan, "both", is_weight=is_weight)
            wanted = cast(x, dtype, emulated, "both", is_weight=is_weight)
            for one, other in zip(found, wanted, strict=True):
                assert torch.equal(as_bytes(one.cpu()), as_bytes(other)), role


def as_bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


@EVERY
def test_the_host_never_waits(recipe: str) -> None:
    config = Float8LinearConfig.from_recipe_name(recipe)
    linear = nn.Linear(256, 512, device="cuda", dtype=torch.bfloat16)
    module = Float8Linear.from_float(linear, config)
    x = torch.randn(3, 100, 256, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(3, 100, 512, device="cuda", dtype=torch.bfloat16)
    results(module, x, dy)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        results(module, x, dy)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")


def test_less_is_saved_than_by_bfloat16() -> None:
    """Between forward and backward: codes of the input, and of weights where N <= M."""
    sizes = {}
    torch.randn(64, 64, device="cuda").bfloat16() @ torch.randn(64, 64, device="cuda").bfloat16()
    for name in ("bf16", "pass", "off", "step"):  # with the library's workspace there
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)))
        model = model.to("cuda", torch.bfloat16)
        if name != "bf16":
            convert_to_float8_training(
                model,
                config=Float8LinearConfig(weight_cache=name),
                module_filter_fn=lambda m, n: True,
            )
        x = torch.randn(8192, 2048, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = model(x)
        sizes[name] = torch.cuda.memory_allocated() - before - y.nbytes
        y.sum().backward()
        del y, model, x
    inputs, weights = 8 * 8192 * 2048, 8 * 2048 * 2048
    assert sizes["bf16"] == pytest.approx(2 * inputs * 7 / 8, rel=0.02)  # the first is x itself
    assert sizes["off"] == pytest.approx(inputs, rel=0.1)
    assert sizes["pass"] == pytest.approx(inputs + weights, rel=0.1)
    assert sizes["pass"] < sizes["bf16"]
    assert sizes["step"] == pytest.approx(inputs + 2 * weights, rel=0.1)


class GatedMLP(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, wide, bias=False) for _ in range(2))
        self.down = nn.Linear(wide, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "blockwise"])
def test_compiled_backward_writes_over_what_it_reads(recipe: str) -> None:
    """Peaks of forward and backward. Results of gate and up and the gradient of their product are
    alive in one kernel, which writes gradients of both, and the product again, to new memory or
    over what it reads."""
    M, width, wide = 4096, 512, 2048
    torch.manual_seed(0)
    model = GatedMLP(width, wide).to("cuda", torch.bfloat16)
    x = torch.randn(M, width, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn_like(x)
    exact = results(model, x, dy)
    convert_to_float8_training(
        model, config=RECIPES[recipe], module_filter_fn=lambda module, name: True
    )
    eager = results(model, x, dy)
    errors = [(a - b).norm() for a, b in zip(eager, exact, strict=True)]
    peaks = {}
    recompute = {k: v for k, v in compile_options().items() if k.startswith("joint")}
    for name, options in (
        ("saved", {}),
        ("saved, over", compile_options(recompute=False)),
        ("again", recompute),
        ("again, over", compile_options()),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, options=options)
        found = results(compiled, x, dy)
        for one, other, error in zip(found, exact, errors, strict=True):
            assert (one - other).norm() <= 1.05 * error
        if recipe != "tensorwise":  # whose gradients, in e5m2, are twice as coarse
            for one, other in zip(found, eager, strict=True):
                assert (one - other).norm() <= 2e-2 * other.norm()  # a fused SiLU rounds otherwise
        del found, one, other
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = results(compiled, x, dy)
        peaks[name] = torch.cuda.max_memory_allocated() - before
        del found
    tensor = 2 * M * wide  # bytes
    assert peaks["saved"] - peaks["saved, over"] >= 0.25 * tensor  # then something else is the peak
    assert peaks["again"] - peaks["again, over"] >= 1.5 * tensor


@EVERY
def test_a_gradient_step_is_that_of_the_cpu(recipe: str) -> None:
    """Autocast, accumulation and clipping, three steps."""
    losses = {}
    for device, config in (("cpu", EMULATED[recipe]), ("cuda", RECIPES[recipe])):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(96, 160), nn.Tanh(), nn.Linear(160, 48))
        convert_to_float8_training(model, config=config, module_filter_fn=lambda m, n: True)
        model.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        found = []
        for step in range(3):
            for part in range(2):
                generator = torch.Generator().manual_seed(2 * step + part)
                x = torch.randn(50, 96, generator=generator).to(device)
                with torch.autocast(device, torch.bfloat16):
                    loss = (model(x).float() - x[:, :48]).square().mean()
                loss.backward()
                found.append(loss.item())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses[device] = found
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=5e-3)


@pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])
def test_experts_are_those_of_the_cpu(recipe: str) -> None:
    offsets = torch.tensor([100, 100, 350, 500], dtype=torch.int32)
    x, w = torch.randn(512, 128).bfloat16(), torch.randn(4, 96, 128).bfloat16()
    dy = torch.randn(512, 96).bfloat16()
    dy[500:] = 0
    found = []
    for device in ("cpu", "cuda"):
        config = dataclasses.replace(RECIPES[recipe], emulate=device == "cpu")
        a, b = (t.clone().to(device).requires_grad_() for t in (x, w))
        y = float8_grouped_mm(a, b, offsets.to(device), config)
        y.backward(dy.to(device))
        found.append([t.cpu().float() for t in (y.detach(), a.grad, b.grad)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 6e-3 * one.norm()


@pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])
def test_experts_that_hold_nothing_and_are_compiled(recipe: str) -> None:
    """Codes that are cast again in backward are those that are held, also under a compiler."""
    offsets = torch.tensor([100, 100, 350, 500], dtype=torch.int32, device="cuda")
    x = torch.randn(500, 128, device="cuda").bfloat16()
    w = torch.randn(4, 96, 128, device="cuda").bfloat16()
    dy = torch.randn(500, 96, device="cuda").bfloat16()

    def called(x: Tensor, experts: nn.Module) -> Tensor:
        return F.grouped_mm(x, experts.w.mT, offs=offsets)

    compiled = torch.compile(called, fullgraph=True, backend="aot_eager")
    found = []
    for cache, run in (("pass", called), ("off", called), ("pass", compiled), ("off", compiled)):
        experts = nn.Module()
        experts.w = nn.Parameter(w.clone())
        config = dataclasses.replace(RECIPES[recipe], weight_cache=cache)
        convert_experts_to_float8_training(experts, config=config)
        a = x.clone().requires_grad_()
        y = run(a, experts)
        y.backward(dy)
        found.append([y.detach(), a.grad, experts.w.grad])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


class Experts(nn.Module):
    """One product of experts, of 500 tokens."""

    def __init__(self, cache: str, recipe: str = "rowwise") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, 96, 128, device="cuda").bfloat16())
        config = dataclasses.replace(RECIPES[recipe], weight_cache=cache)
        convert_experts_to_float8_training(self, config=config)
        self.offsets = torch.tensor([100, 100, 350, 500], dtype=torch.int32, device="cuda")

    def forward(self, x: Tensor) -> Tensor:
        return F.grouped_mm(x, self.w.mT, offs=self.offsets)


def tokens(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(500, 128, generator=generator).cuda().bfloat16()


@pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_experts_are_cast_once_a_step(recipe: str, options: dict[str, bool]) -> None:
    """With weight_cache="step", and bits are those of casting them in every pass."""
    results = []
    for cache in ("pass", "step"):
        experts = Experts(cache, recipe)
        optimizer = torch.optim.AdamW(experts.parameters(), lr=1e-2, **options)
        found = []
        for step in range(3):
            with counted() as casts:
                for part in range(3):
                    x = tokens(3 * step + part)
                    dy = tokens(99)[:, :96].contiguous()
                    found += checked(experts, x, dy)
            assert len(casts) == (cache == "step")
            experts.w.grad = found[-1]
            optimizer.step()
        results.append([*found, experts.w.detach().clone()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def checked(experts: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    found = results(experts, x, dy)
    assert [t.shape for t in found] == [dy.shape, x.shape, experts.w.shape]
    return found


def test_codes_of_experts_do_not_serve_graphs_and_other_streams() -> None:
    """A replay casts the weights that it finds."""
    experts, x, dy = Experts("step"), tokens(0), tokens(1)[:, :96].contiguous()
    results(experts, x, dy)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other), counted() as casts:
        results(experts, x, dy)
    assert len(casts) == 1
    torch.cuda.current_stream().wait_stream(other)
    graph = torch.cuda.CUDAGraph()
    with counted() as casts, torch.cuda.graph(graph):
        found = results(experts, x, dy)
    assert len(casts) == 1
    for _ in range(2):
        with torch.no_grad():
            experts.w.mul_(2)
        graph.replay()
        for one, two in zip(found, results(experts, x, dy), strict=True):
            assert torch.equal(one, two)


def test_experts_never_make_the_host_wait() -> None:
    experts, x, dy = Experts("step"), tokens(0), tokens(1)[:, :96].contiguous()
    results(experts, x, dy)
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):
                results(experts, x, dy)
                with torch.no_grad():
                    experts.w.mul_(2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
