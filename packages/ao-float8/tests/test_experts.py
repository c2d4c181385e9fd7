"""Experts: numbers of the grouped products, gradients, offsets of every kind, parameters."""

from __future__ import annotations

import copy

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
    with pytest.raises(UnsupportedOpError, match=r"FSDP2 cannot shard them"):
        torch.chunk(model.down_proj, 2)
    with pytest.raises(ConversionError, match=r"trained in float8 already"):
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
