"""Experts: numbers of the grouped products, gradients, offsets of every kind, parameters."""

from __future__ import annotations

import copy
import io
import types

import pytest
import torch
import torch.nn.functional as F
from layers import emulated, image
from torch import Tensor, nn

from ao_core.errors import ConfigError, ConversionError, UnsupportedOpError
from ao_float8 import Float8LinearConfig
from ao_float8.experts import (
    Float8Experts,
    convert_experts_to_float8_training,
    float8_grouped_mm,
)

RECIPES = pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])
ENDS = [[5, 5, 19, 40], [0, 0, 0, 33], [16, 32, 48, 64], [1, 2, 3, 4]]


def expected(
    x: Tensor, w: Tensor, dy: Tensor, ends: list[int], config: Float8LinearConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """y, dx, dw in float64, expert by expert."""
    y, dx = dy.double() * 0, x.double() * 0
    dw, start = w.double() * 0, 0
    for e, end in enumerate(ends):
        rows = slice(start, end)
        start = end
        if rows.stop == rows.start:
            continue
        y[rows] = image(x[rows], config, "input") @ image(w[e], config, "weight").T
        dx[rows] = image(dy[rows], config, "grad_output") @ image(
            w[e], config, "weight", columns=True
        )
        if config.grad_weight_in_high_precision:
            dw[e] = dy[rows].double().T @ x[rows].double()
        else:
            dw[e] = image(dy[rows], config, "grad_output", columns=True).T @ image(
                x[rows], config, "input", columns=True
            )
    return y, dx, dw


@RECIPES
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_equations(
    recipe: str, ends: list[int], dtype: torch.dtype
) -> None:
    config = emulated(recipe)
    odd = ends[0] == 1
    M, (E, N, K) = ends[-1] + 3, (4, 23 if odd else 24, 37 if odd else 40)  # 3 are of no expert
    x, w, dy = (torch.randn(*s).to(dtype) for s in ((M, K), (E, N, K), (M, N)))
    if recipe == "rowwise_with_gw_hp" and dtype == torch.bfloat16:
        dy[ends[-1] :] = 0
    offsets = torch.tensor(ends, dtype=torch.int32)
    x.requires_grad_()
    w.requires_grad_()
    y = float8_grouped_mm(x, w, offsets, config)
    y.backward(dy)
    for found, exact in zip(
        (y.detach(), x.grad, w.grad),
        expected(x.detach(), w.detach(), dy, ends, config),
        strict=True,
    ):
        assert found.dtype == dtype
        limit = torch.finfo(dtype).eps * exact.abs() + 1e-4
        assert ((found.double() - exact).abs() <= limit).all()
    assert (y[ends[-1] :] == 0).all() and (x.grad[ends[-1] :] == 0).all()


def test_only_wanted_gradients_and_autocast() -> None:
    offsets = torch.tensor([8, 16], dtype=torch.int32)
    x, w = torch.randn(16, 32), torch.randn(2, 16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = float8_grouped_mm(x, w, offsets, emulated("rowwise"))
    assert y.dtype == torch.bfloat16 and not y.requires_grad
    w.requires_grad_()
    float8_grouped_mm(x, w, offsets, emulated("rowwise")).sum().backward()
    assert w.grad is not None
    w.requires_grad_(False)
    x.requires_grad_()
    float8_grouped_mm(x, w, offsets, emulated("rowwise")).sum().backward()
    assert x.grad is not None


def test_transposed_weights() -> None:
    offsets = torch.tensor([8, 16], dtype=torch.int32)
    x, w = torch.randn(16, 32), torch.randn(2, 32, 24)
    found = float8_grouped_mm(x, w.mT, offsets, emulated("rowwise"))
    assert torch.equal(found, float8_grouped_mm(x, w.mT.contiguous(), offsets, emulated("rowwise")))


def test_compiled() -> None:
    offsets = torch.tensor([5, 16], dtype=torch.int32)
    config = emulated("rowwise")
    results = []
    compiled = torch.compile(float8_grouped_mm, fullgraph=True, backend="aot_eager")
    x, w, dy = torch.randn(16, 32), torch.randn(2, 16, 32), torch.randn(16, 16)
    for run in (float8_grouped_mm, compiled):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = run(a, b, offsets, config)
        y.backward(dy)
        results.append((y.detach(), a.grad, b.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_refusals() -> None:
    offsets = torch.tensor([8, 16], dtype=torch.int32)
    x, w = torch.randn(16, 32), torch.randn(2, 16, 32)
    with pytest.raises(ConfigError, match=r"scaling='rowwise', got 'tensorwise'"):
        float8_grouped_mm(x, w, offsets, emulated("tensorwise"))
    with pytest.raises(ValueError, match=r"must be \(M, K\) and \(E, N, K\)"):
        float8_grouped_mm(x, w.mT, offsets, emulated("rowwise"))
    with pytest.raises(TypeError, match=r"outside of torch.autocast they must be the same"):
        float8_grouped_mm(x.bfloat16(), w, offsets, emulated("rowwise"))
    with pytest.raises(ValueError, match=r"2 experts need as many ends"):
        float8_grouped_mm(x, w, offsets[:1], emulated("rowwise"))
    with pytest.raises(RuntimeError, match=r"emulate=True"):
        float8_grouped_mm(x, w, offsets)


class Experts(nn.Module):
    """As Transformers' fused experts are: one projection each way, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 48, 32) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(2, 24, 32) * 0.2)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        gate, up = F.grouped_mm(x, self.gate_up_proj.mT, offs=offsets).chunk(2, -1)
        return F.grouped_mm(torch.sigmoid(gate) * up, self.down_proj, offs=offsets)


def test_parameters_of_a_model() -> None:
    model = Experts()
    plain = copy.deepcopy(model)
    report = convert_experts_to_float8_training(model, config=emulated("rowwise"))
    assert [r.what for r in report.rows] == ["Float8Experts, rowwise"] * 2
    assert isinstance(model.down_proj, Float8Experts)
    assert isinstance(model.down_proj, nn.Parameter)
    assert {type(v) for v in model.state_dict().values()} == {Tensor}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, offsets = torch.randn(24, 32), torch.tensor([9, 24], dtype=torch.int32)
    y = model(x, offsets)
    assert y.shape == (24, 32)
    exact = plain(x, offsets)
    assert not torch.equal(y, exact) and (y - exact).norm() < 0.1 * exact.norm()
    y.square().sum().backward()
    exact.square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.15 * other.grad.norm()
    other = copy.deepcopy(model)
    assert isinstance(other.down_proj, Float8Experts)
    assert torch.equal(other(x, offsets), model(x, offsets))
    before = model.down_proj.detach().clone()
    optimizer.step()
    assert isinstance(model.down_proj, Float8Experts)
    assert not torch.equal(before, model.down_proj.detach())
    plain.load_state_dict(model.state_dict())
    with pytest.raises(ConversionError, match=r"trained in float8 already"):
        convert_experts_to_float8_training(model)


def gradients(model: nn.Module, x: Tensor, offsets: Tensor) -> list[Tensor]:
    y = model(x, offsets)
    y.square().sum().backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return [y.detach(), *found]


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_parameters_stay_experts() -> None:
    """Behind what a training run does to a model."""
    model = Experts()
    before = model.state_dict()
    convert_experts_to_float8_training(model, config=emulated("rowwise"))
    assert model.down_proj.plain.data_ptr() == before["down_proj"].data_ptr()
    x, offsets = torch.randn(24, 32), torch.tensor([9, 24], dtype=torch.int32)
    wanted = gradients(model, x, offsets)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert same(gradients(other, x, offsets), wanted)
        assert other.down_proj.plain.data_ptr() != before["down_proj"].data_ptr()
    model.load_state_dict({name: value.clone() for name, value in before.items()}, assign=True)
    assert isinstance(model.down_proj, nn.Parameter)
    assert same(gradients(model, x, offsets), wanted)
    assert {type(v) for v in model.state_dict().values()} == {Tensor}
    assert isinstance(model.state_dict(keep_vars=True)["down_proj"], Float8Experts)
    half = model.to(torch.bfloat16)
    assert isinstance(half.down_proj, Float8Experts) and half.down_proj.dtype == torch.bfloat16
    assert half(x.bfloat16(), offsets).dtype == torch.bfloat16


def test_parameters_under_a_compiler() -> None:
    model = Experts()
    convert_experts_to_float8_training(model, config=emulated("rowwise"))
    x, offsets = torch.randn(24, 32), torch.tensor([9, 24], dtype=torch.int32)
    wanted = gradients(model, x, offsets)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert same(gradients(compiled, x, offsets), wanted)


def test_views_are_experts_too() -> None:
    config = emulated("rowwise")
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(2, 48, 32))
    wanted = model.w.detach()
    convert_experts_to_float8_training(model, config=config)
    x, offsets = torch.randn(24, 32), torch.tensor([9, 24], dtype=torch.int32)
    for view in (lambda w: w[:, :16], lambda w: w.chunk(3, 1)[0], lambda w: w.narrow(1, 0, 16)):
        found = F.grouped_mm(x, view(model.w).permute(0, 2, 1), offs=offsets)
        assert torch.equal(found, float8_grouped_mm(x, view(wanted), offsets, config))
    with pytest.raises(UnsupportedOpError, match=r"without a bias"):
        F.grouped_mm(x, model.w.mT, offs=offsets, bias=torch.zeros(2, 48))
    by_position = torch._grouped_mm(x, model.w.mT, offsets)
    assert torch.equal(by_position, float8_grouped_mm(x, wanted, offsets, config))
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(UnsupportedOpError, match="local"):
        F.grouped_mm(x, model.w.mT, offs=offsets)


def test_codes_of_weights_are_not_held() -> None:
    """Where the config says so: cast again in backward, to the same bits."""
    results, sizes = [], []
    for cache in ("pass", "off"):
        torch.manual_seed(0)
        model = Experts()
        convert_experts_to_float8_training(model, config=emulated("rowwise", weight_cache=cache))
        x, offsets = torch.randn(24, 32), torch.tensor([9, 24], dtype=torch.int32)
        x.requires_grad_()
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t
        ):
            model(x, offsets)
        sizes.append(sum(t.nbytes for t in saved if t.dim() == 3 and t.itemsize == 1))
        results.append([*gradients(model, x, offsets), x.grad])
    assert sizes == [2 * 48 * 32 + 2 * 32 * 32, 0]  # padded to multiples of 16
    assert same(*results)


def test_shared_parameters_stay_shared() -> None:
    one, other = Experts(), Experts()
    other.down_proj = one.down_proj
    model = nn.ModuleList([one, other])
    convert_experts_to_float8_training(model, config=emulated("rowwise"))
    assert one.down_proj is other.down_proj and len(list(model.parameters())) == 3


def test_models_that_do_not_group_are_refused() -> None:
    model = Experts()
    model.config = types.SimpleNamespace(_experts_implementation="eager")
    with pytest.raises(ConversionError, match=r"set_experts_implementation\('grouped_mm'\)"):
        convert_experts_to_float8_training(model)


def test_which_parameters() -> None:
    model = Experts()
    report = convert_experts_to_float8_training(
        model, parameter_filter_fn=lambda module, name: name == "down_proj"
    )
    assert report["gate_up_proj"].status == "skipped"
    assert type(model.gate_up_proj) is nn.Parameter
    with pytest.raises(ConversionError, match=r"no parameter has three dimensions"):
        convert_experts_to_float8_training(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"got 'blockwise'"):
        convert_experts_to_float8_training(model, config=emulated("blockwise"))
