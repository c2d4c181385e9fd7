"""Codes of experts' weights that stay until the weights change: weight_cache="step"."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layers import CHECKPOINTS, computed, counted, emulated
from torch import Tensor, nn

from ao_float8.experts import (
    Float8Experts,
    convert_experts_to_float8_training,
    float8_grouped_mm,
)

OFFSETS = torch.tensor([9, 24], dtype=torch.int32)
RECIPES = pytest.mark.parametrize("recipe", ["rowwise", "rowwise_with_gw_hp"])


class Experts(nn.Module):
    """Both orientations: (E, 2H, D), transposed where it is multiplied, and (E, H, D) as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 48, 32) * 0.2)
        self.down = nn.Parameter(torch.randn(2, 48, 32) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(F.grouped_mm(x, self.up.mT, offs=OFFSETS))
        return x + F.grouped_mm(h, self.down, offs=OFFSETS)


class Net(nn.Module):
    def __init__(self, cache: str, recipe: str = "rowwise", how: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Experts() for _ in range(2))
        self.how = how
        convert_experts_to_float8_training(self, config=emulated(recipe, weight_cache=cache))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = CHECKPOINTS[self.how](block, x)
        return x


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))


def casts_of_weights(shapes: list[torch.Size]) -> int:
    return sum(len(shape) == 3 for shape in shapes)


def trained(model: nn.Module) -> tuple[list[Tensor], list[int]]:
    """Results, gradients and weights of two steps of three passes; casts of weights by pass."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found, casts = [], []
    for step in range(2):
        for part in range(3):
            x = inputs(3 * step + part).requires_grad_()
            with computed() as shapes:
                y = model(x)
                y.square().sum().backward()
            casts.append(casts_of_weights(shapes))
            found += [y.detach(), x.grad]
        found += [p.grad for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return [*found, *(p.detach().clone() for p in model.parameters())], casts


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@RECIPES
@pytest.mark.parametrize("how", ["", "reentrant", "plain", "selective"])
def test_weights_are_cast_once_a_step(recipe: str, how: str) -> None:
    """By the first of several passes, also where it is recomputed; every bit is as without."""
    wanted, _ = trained(Net("off", recipe))
    found, casts = trained(Net("step", recipe, how))
    assert same(found, wanted)
    assert casts == [4, 0, 0] * 2
    _, casts = trained(Net("pass", recipe, how))
    assert casts == [8 if how else 4] * 6


def test_selective_checkpointing_keeps_casts_of_tokens_alone() -> None:
    net, x = Net("pass", how="selective"), inputs().requires_grad_()
    with computed() as shapes:
        y = net(x)
        n_forward = len(shapes)
        y.square().sum().backward()
    assert n_forward == 8
    # four gradients and four weights, no tokens
    assert sorted(map(len, shapes[n_forward:])) == [2] * 4 + [3] * 4


def experts(cache: str = "step") -> Experts:
    torch.manual_seed(0)
    model = Experts()
    convert_experts_to_float8_training(model, config=emulated("rowwise", weight_cache=cache))
    return model


class Raw(torch.optim.Optimizer):
    """Writes past all versions, as optimizers with their own kernels do."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.plain.view(-1).numpy()[:] *= 1.5


def stepped(
    make: Callable[..., torch.optim.Optimizer], **options: object
) -> Callable[[nn.Module, Tensor], None]:
    def step(model: nn.Module, before: Tensor) -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p.plain)
        make(model.parameters(), lr=0.1, **options).step()

    return step


def without_grad(write: Callable[[nn.Module, Tensor], object]) -> Callable[..., None]:
    def run(model: nn.Module, before: Tensor) -> None:
        with torch.no_grad():
            write(model, before)

    return run


def doubled(model: nn.Module) -> dict[str, Tensor]:
    return {name: 2 * value for name, value in model.state_dict().items()}


def swapped(model: nn.Module, before: Tensor) -> None:
    model.up = nn.Parameter(Float8Experts(3 * model.up.plain, model.up.config))


def placed(model: nn.Module, before: Tensor) -> None:
    with torch.inference_mode():
        model.up.mul_(2)


CHANGES = {
    "SGD": stepped(torch.optim.SGD),
    "SGD foreach": stepped(torch.optim.SGD, foreach=True),
    "AdamW": stepped(torch.optim.AdamW),
    "AdamW foreach": stepped(torch.optim.AdamW, foreach=True),
    "AdamW fused": stepped(torch.optim.AdamW, fused=True),
    "raw": lambda model, before: Raw(model.parameters(), {}).step(),
    "load": lambda model, before: model.load_state_dict(doubled(model)),
    "assign": lambda model, before: model.load_state_dict(doubled(model), assign=True),
    "swap": swapped,
    "inference": placed,
    "in place": without_grad(lambda model, before: model.up.mul_(2)),
    "of a view": without_grad(lambda model, before: model.up[1:].mT.mul_(2)),
    "foreach": without_grad(lambda model, before: torch._foreach_mul_([model.up], 2)),
    "data": lambda model, before: model.up.data.copy_(2 * model.up.plain),
    "state dict": lambda model, before: model.state_dict()["up"].mul_(2),
    "before conversion": without_grad(lambda model, before: before.mul_(2)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_changes_are_seen(how: str) -> None:
    torch.manual_seed(0)
    model = Experts()
    before = model.up
    convert_experts_to_float8_training(model, config=emulated("rowwise", weight_cache="step"))
    y = model(inputs())
    with counted() as casts:
        assert torch.equal(model(inputs()), y) and not casts
    CHANGES[how](model, before)
    other = Experts()
    other.load_state_dict(model.state_dict())
    convert_experts_to_float8_training(other, config=emulated("rowwise"))
    z = model(inputs())
    assert not torch.equal(z, y) and torch.equal(z, other(inputs()))


def test_parameters_of_one_tensor() -> None:
    """What is written to one of them is seen by the other."""
    w, down = torch.randn(2, 48, 32), nn.Parameter(torch.randn(2, 48, 32))
    one, other = Experts(), Experts()
    for model in (one, other):
        model.up, model.down = nn.Parameter(w), down
        convert_experts_to_float8_training(model, config=emulated("rowwise", weight_cache="step"))
    y = other(inputs())
    assert torch.equal(y, one(inputs()))
    with torch.no_grad():
        one.up.mul_(2)
    z = other(inputs())
    assert torch.equal(z, one(inputs())) and not torch.equal(y, z)


def test_reading_a_weight_keeps_its_codes() -> None:
    model, average = experts(), torch.zeros(2, 48, 32)
    model(inputs())
    with counted() as casts:
        average.lerp_(model.up.detach(), 0.5)
        torch._foreach_add_([average], [model.up.detach()])
        assert model.up.norm() > 0
        model(inputs())
    assert not casts


def test_two_bytes_a_parameter() -> None:
    """What is saved for backward are the codes that are kept."""
    model, saved = experts(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        model(inputs().requires_grad_())
    assert model.up.codes.nbytes == 2 * 2 * 48 * 32 + 4 * 2 * (48 + 32)
    kept = {
        t.data_ptr()
        for w in (model.up, model.down)
        for codes in w.codes._codes.values()
        for t in codes
    }
    of_experts = [t for t in saved if t.dim() == 3]
    assert len(of_experts) == 4  # codes and scales of two weights, one direction
    assert {t.data_ptr() for t in of_experts} < kept
    for other in ("pass", "off"):
        model = experts(other)
        model(inputs().requires_grad_()).sum().backward()
        assert not model.up.codes.nbytes


def test_copies_keep_nothing() -> None:
    model = experts()
    y = model(inputs())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(model).to(torch.bfloat16).float(),
    ):
        assert not other.up.codes.nbytes and not other.down.codes.nbytes
        assert other(inputs()).shape == y.shape and other.up.codes.nbytes
        assert other.up.codes is not model.up.codes
    assert torch.equal(model(inputs()), y)


def test_slices_have_codes_of_their_own() -> None:
    """Gate and up of one parameter, multiplied apart."""
    results, model = [], experts()
    for _ in range(2):
        with counted() as casts:
            results.append(
                [F.grouped_mm(inputs(), w.mT, offs=OFFSETS) for w in model.up.chunk(2, 1)]
            )
        assert len(casts) == (0 if len(results) == 2 else 2)
    whole = F.grouped_mm(inputs(), model.up.mT, offs=OFFSETS)
    assert torch.equal(torch.cat(results[1], 1), whole) and same(*results)


def test_a_step_between_forward_and_backward() -> None:
    """Backward has the codes of its forward, with "step" as with "pass"."""
    results = []
    for cache in ("pass", "step"):
        model, x = experts(cache), inputs().requires_grad_()
        y = model(x)
        with torch.no_grad():
            model.down.mul_(2)
        model(inputs())
        y.square().sum().backward()
        results.append([x.grad, model.up.grad, model.down.grad])
    assert same(*results)


def test_inference_mode() -> None:
    """Experts run in float8 there, in every view; codes that were made there do not serve
    training, and tensors without a version keep none."""
    model = experts()
    wanted = model(inputs()).detach()
    model.up.codes.drop()
    for view in (
        lambda w: w.mT,
        lambda w: w.transpose(1, 2),
        lambda w: w.permute(0, 2, 1),
        lambda w: w.chunk(1, 1)[0].mT,
        lambda w: w.detach().view_as(w).mT,
    ):
        found = F.grouped_mm(inputs(), view(model.up), offs=OFFSETS)
        with torch.inference_mode():
            assert torch.equal(F.grouped_mm(inputs(), view(model.up), offs=OFFSETS), found)
    with torch.inference_mode():
        for _ in range(2):
            with counted() as casts:
                assert torch.equal(model(inputs()), wanted)
        assert not casts
    model(inputs().requires_grad_()).sum().backward()
    with torch.inference_mode():
        model = experts()
        assert torch.equal(model(inputs()), wanted) and not model.up.codes.nbytes


def test_compiled_experts_keep_nothing() -> None:
    model, x = experts(), inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(x.requires_grad_())
    y.square().sum().backward()
    assert not model.up.codes.nbytes
    found, x.grad = [x.grad, model.up.grad], None
    model.zero_grad()
    model(x).square().sum().backward()
    assert same(found, [x.grad, model.up.grad])


def test_a_compiled_optimizer_is_seen() -> None:
    model = experts()
    y = model(inputs())
    y.sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.compile(optimizer.step, backend="aot_eager")()
    other = copy.deepcopy(model)
    z = model(inputs())
    assert not torch.equal(y, z) and torch.equal(z, other(inputs()))


def test_ordinary_parameters_keep_nothing() -> None:
    w, config = nn.Parameter(torch.randn(2, 48, 32)), emulated("rowwise", weight_cache="step")
    for _ in range(2):
        with computed() as shapes:
            float8_grouped_mm(inputs(), w, OFFSETS, config).sum().backward()
        assert casts_of_weights(shapes) == 1
