"""Float8Linear: numbers of every recipe, shapes, gradients that are wanted and that are not."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
import torch.nn.functional as F
from layers import EMULATED, counted, emulated, expected, image, layer
from torch import Tensor, nn

from ao_float8 import Float8Linear, Float8LinearConfig, hardware
from ao_float8.linear import plan_of
from ao_float8.operands import cast

RECIPES = pytest.mark.parametrize("recipe", EMULATED)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def run(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """y, and gradients of x and the parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    found = torch.autograd.grad(y, [x, *module.parameters()], dy)
    return y.detach(), *found


def close(found: Tensor, exact: Tensor, terms: Tensor) -> bool:
    """Rounded once to its dtype; `terms`: sums of magnitudes, of which float32 loses some."""
    eps = torch.finfo(found.dtype).eps
    return bool(((found.double() - exact).abs() <= eps * exact.abs() + 1e-5 * terms + 1e-30).all())


@RECIPES
@DTYPES
def test_numbers_are_those_of_the_equations(recipe: str, dtype: torch.dtype) -> None:
    config = EMULATED[recipe]
    M, K, N = 37, 150, 139
    module = layer(K, N, config, dtype=dtype)
    x, dy = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
    y, dx, dw, db = run(module, x, dy)
    w, bias = module.weight.detach(), module.bias.detach()
    y64, dx64, dw64 = expected(x, w, dy, config)
    X, W, D = x.double().abs(), w.double().abs(), dy.double().abs()
    assert [t.dtype for t in (y, dx, dw, db)] == [dtype] * 4
    assert close(y, y64 + bias.double(), X @ W.T + 1)
    assert close(dx, dx64, D @ W)
    assert close(dw, dw64, D.T @ X)
    assert torch.equal(db, dy.sum(0))


@RECIPES
def test_results_are_near_those_of_a_linear(recipe: str) -> None:
    """Against equations that are wrong together with the code."""
    module = layer(256, 128, EMULATED[recipe])
    x, dy = torch.randn(64, 256), torch.randn(64, 128)
    exact = run(module.to_float(), x, dy)
    limit = 0.012 if recipe == "int8" else 0.07  # e5m2 has 2 bits of mantissa
    for found, wanted in zip(run(module, x, dy), exact, strict=True):
        assert (found - wanted).norm() < limit * wanted.norm()


@RECIPES
@pytest.mark.parametrize("shape", [(1,), (2, 3), (2, 1, 3), (0,), (2, 0, 3), (17,)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (16, 32), (33, 7)], ids=str)
def test_any_shape(recipe: str, shape: tuple[int, ...], sizes: tuple[int, int]) -> None:
    K, N = sizes
    module = layer(K, N, EMULATED[recipe])
    x, dy = torch.randn(*shape, K), torch.randn(*shape, N)
    found = run(module, x, dy)
    flat = run(module, x.reshape(-1, K), dy.reshape(-1, N))
    assert found[0].shape == (*shape, N) and found[1].shape == x.shape
    assert found[0].is_contiguous()
    for one, other in zip(found, flat, strict=True):
        assert torch.equal(one.reshape(other.shape), other)
    if x.numel():
        exact = run(module.to_float(), x, dy)
        for one, other in zip(found, exact, strict=True):
            assert (one - other).norm() <= 0.2 * other.norm() + 1e-6
    else:
        assert all((each == 0).all() for each in found[2:])


def test_one_vector() -> None:
    module = layer(32, 16)
    x = torch.randn(32, requires_grad=True)
    y = module(x)
    assert y.shape == (16,)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == (32,)


@RECIPES
def test_strides_do_not_matter(recipe: str) -> None:
    module = layer(48, 32, EMULATED[recipe], bias=False)  # whose sum has an order
    x, dy = torch.randn(48, 24).T, torch.randn(32, 24).T
    plain = run(module, x.contiguous(), dy.contiguous())
    for found, wanted in zip(run(module, x, dy), plain, strict=True):
        assert torch.equal(found, wanted)
    expanded = run(module, x, torch.ones(()).expand(24, 32))  # what .sum().backward() gives
    for found, wanted in zip(expanded, run(module, x, torch.ones(24, 32)), strict=True):
        assert torch.equal(found, wanted)


def test_only_wanted_gradients_are_computed() -> None:
    module = layer(64, 32, bias=False)
    x, dy = torch.randn(48, 64), torch.randn(48, 32)
    whole = run(module, x, dy)

    module.weight.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    with counted() as casts:
        module(inputs).backward(dy.clone())
    # of x and dy no transposed codes: there is no wgrad
    assert casts == [("rows", False), ("both", True), ("rows", False)]
    assert inputs.grad is not None and torch.equal(inputs.grad, whole[1])

    module.weight.requires_grad_(True)
    with counted() as casts:
        module(x.clone()).backward(dy.clone())
    assert casts == [("both", False), ("rows", True), ("columns", False)]
    assert module.weight.grad is not None and torch.equal(module.weight.grad, whole[2])

    with torch.no_grad(), counted() as casts:
        assert torch.equal(module(x.clone()), whole[0])
    assert casts == [("rows", False), ("rows", True)]


def test_frozen_weight_with_a_trained_bias() -> None:
    module = layer(64, 32)
    module.weight.requires_grad_(False)
    dy = torch.randn(8, 32)
    with counted() as casts:
        module(torch.randn(8, 64)).backward(dy)
    assert casts == [("rows", False), ("rows", True)]
    assert torch.equal(module.bias.grad, dy.sum(0))


def saved_tensors(module: nn.Module, x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return saved


def test_saved_are_codes() -> None:
    x = torch.randn(64, 48, dtype=torch.bfloat16, requires_grad=True)
    for N, held in ((32, True), (96, False)):  # N <= M: codes of the weight are held for backward
        module = layer(48, N, dtype=torch.bfloat16)
        large = [t for t in saved_tensors(module, x) if t.numel() > 1]
        assert [t.dtype for t in large] == [
            torch.float8_e4m3fn,
            torch.float8_e4m3fn if held else torch.bfloat16,
        ]
        assert large[0].shape == (48, 64)
        assert held or large[1] is module.weight
    exact = layer(48, 32, emulated("rowwise_with_gw_hp"), dtype=torch.bfloat16)
    assert any(t is x for t in saved_tensors(exact, x))


@pytest.mark.parametrize("cache", ["pass", "off", "step", "scale"])
def test_what_is_kept_of_a_weight_changes_no_bit(cache: str) -> None:
    for recipe in EMULATED if cache != "scale" else ["tensorwise"]:
        config = EMULATED[recipe]
        for M in (8, 64):  # codes of the weight are held, or not
            plain = layer(48, 32, config)
            other = Float8Linear.from_float(
                plain.to_float(), dataclasses.replace(config, weight_cache=cache)
            )
            x, dy = torch.randn(M, 48), torch.randn(M, 32)
            wanted = run(plain, x, dy)
            for _ in range(2):
                for found, each in zip(run(other, x, dy), wanted, strict=True):
                    assert torch.equal(found, each)


@RECIPES
def test_casts_that_are_made_again_change_no_bit(recipe: str) -> None:
    plain = layer(48, 32, EMULATED[recipe])
    other = Float8Linear.from_float(plain.to_float(), emulated(recipe, recompute_casts=True))
    x, dy = torch.randn(2, 20, 48), torch.randn(2, 20, 32)
    wanted = run(plain, x, dy)
    with counted() as casts:
        found = run(other, x.clone(), dy.clone())  # of x there are codes
    for one, each in zip(found, wanted, strict=True):
        assert torch.equal(one, each)
    of_input = [outputs for outputs, is_weight in casts if not is_weight]
    exact = recipe == "rowwise_with_gw_hp"
    assert of_input == ["rows", "rows"] if exact else of_input == ["rows", "both", "columns"]
    assert any(t.data_ptr() == x.data_ptr() for t in saved_tensors(other, x))


@RECIPES
def test_emulation_changes_products_not_codes(recipe: str) -> None:
    """The casts of a config with and without `emulate` are one function."""
    real, same = plan_of(Float8LinearConfig.from_recipe_name(recipe)), plan_of(EMULATED[recipe])
    x = torch.randn(40, 60)
    for is_weight in (False, True):
        codes = cast(x, real.input_dtype, real, "both", is_weight=is_weight)
        for one, other in zip(
            codes, cast(x, same.input_dtype, same, "both", is_weight=is_weight), strict=True
        ):
            assert torch.equal(
                one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
            )


@RECIPES
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_never_lost(recipe: str, bad: float) -> None:
    module = layer(32, 16, EMULATED[recipe])
    if recipe == "int8":
        pytest.skip("int8 codes have no NaN, but scales do: test_int8_keeps_nan_in_scales")
    x, dy = torch.randn(32, 32), torch.randn(32, 16)
    x[3, 5] = bad
    y, _, dw, _ = run(module, x, dy)
    assert not y[3].isfinite().any() and not dw[:, 5].isfinite().any()
    dy[3, 5] = bad
    _, dx, dw, db = run(module, torch.randn(32, 32), dy)
    assert not dx[3].isfinite().any() and not dw[5].isfinite().any() and not db[5].isfinite()


def test_int8_keeps_nan_in_scales() -> None:
    module = layer(32, 16, EMULATED["int8"])
    x = torch.randn(32, 32)
    x[3, 5] = float("nan")
    y, _, dw, _ = run(module, x, torch.randn(32, 16))
    assert y[3].isnan().all() and dw[:, 5].isnan().all()
    assert y[4:].isfinite().all()


def test_large_and_small_values() -> None:
    """Scales reach what the dtypes hold, without overflow on the way."""
    for scale in (1e-30, 1e30):
        module = layer(32, 16, bias=False)
        x = torch.randn(16, 32) * scale
        y = module(x)
        assert (y / scale - F.linear(x / scale, module.weight)).norm() < 0.1 * (y / scale).norm()


# --- dtypes and autocast


def test_autocast_decides_the_dtype() -> None:
    module = layer(64, 32)
    x, dy = torch.randn(16, 64), torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
    assert y.dtype == torch.bfloat16
    y.backward(dy.bfloat16())
    assert inputs.grad is not None and inputs.grad.dtype == torch.float32
    assert module.weight.grad.dtype == module.bias.grad.dtype == torch.float32
    # codes are those of the float32 tensors: nothing is rounded twice
    config = module.config
    exact = image(x, config, "input") @ image(module.weight, config, "weight").T
    bias = module.bias.detach().bfloat16().double()
    assert close(y.detach(), exact + bias, x.double().abs() @ module.weight.double().abs().T)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert module(x).dtype == torch.float32


def test_autocast_with_exact_wgrad_saves_the_low_precision_input() -> None:
    module = layer(64, 32, emulated("rowwise_with_gw_hp"))
    x = torch.randn(16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        saved = saved_tensors(module, x)
        y = module(x)
    assert any(t.dtype == torch.bfloat16 and t.shape == x.shape for t in saved)
    y.sum().backward()
    assert module.weight.grad.dtype == torch.float32


def test_dtypes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"input has dtype torch.bfloat16 and the weight"):
        layer(16, 16)(torch.randn(2, 16).bfloat16())
    with pytest.raises(ValueError, match=r"last dimension must be the layer's 16 input features"):
        layer(16, 16)(torch.randn(2, 17))


def test_devices_that_cannot_multiply_are_refused() -> None:
    module = Float8Linear.from_float(nn.Linear(16, 16), Float8LinearConfig())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for run_ in (module, compiled):
        with pytest.raises(RuntimeError, match=r"cpu devices .* emulate=True"):
            run_(torch.randn(2, 16))


@pytest.mark.parametrize(
    ("recipe", "capability", "message"),
    [
        ("tensorwise", (8, 0), r"NVIDIA A100 has compute capability 8.0; .*float8 codes need 8.9"),
        ("int8", (7, 5), r"has compute capability 7.5; products of int8 codes need 8.0 or later"),
        ("int8", (8, 0), None),
        ("rowwise", (8, 9), None),
    ],
)
def test_gpus_that_cannot_multiply_are_refused(
    recipe: str, capability: tuple[int, int], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What conversion and the first forward pass ask of a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    hardware.refusal.cache_clear()
    scaling = Float8LinearConfig.from_recipe_name(recipe).scaling
    device = torch.device("cuda", 7)
    hardware.check_device(scaling, device, emulate=True)
    if message is None:
        hardware.check_device(scaling, device, emulate=False)
    else:
        with pytest.raises(RuntimeError, match=message + r"(.|\n)*emulate=True"):
            hardware.check_device(scaling, device, emulate=False)
    hardware.refusal.cache_clear()


# --- modules


def test_parameters_are_shared_both_ways() -> None:
    linear = nn.Linear(16, 8)
    module = Float8Linear.from_float(linear, emulated())
    assert module.weight is linear.weight and module.bias is linear.bias
    back = module.to_float()
    assert type(back) is nn.Linear and back.weight is linear.weight
    assert "config" not in back.__dict__ and type(linear) is nn.Linear
    assert list(module.state_dict()) == list(linear.state_dict())
    with pytest.raises(TypeError, match=r"from_float takes an nn.Linear, got Float8Linear"):
        Float8Linear.from_float(module)
    with pytest.raises(TypeError, match=r"expected a Float8LinearConfig"):
        Float8Linear.from_float(linear, "tensorwise")


def test_meta() -> None:
    module = Float8Linear.from_float(nn.Linear(16, 8, device="meta"))
    assert module.weight.is_meta
    assert module(torch.empty(3, 16, device="meta")).shape == (3, 8)


def test_copies_and_files() -> None:
    module = layer(16, 8, emulated(weight_cache="step"))
    x = torch.randn(4, 16)
    y = module(x)
    assert module._weight_codes.nbytes
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert other.weight is not module.weight and not other._weight_codes.nbytes
        assert torch.equal(other(x), y)
    assert "scaling=tensorwise" in repr(module)


def test_double_backward_is_refused() -> None:
    module = layer(16, 8)
    x = torch.randn(4, 16, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("M", [16, 17])
def test_results_may_be_changed_in_place(M: int) -> None:
    module = layer(16, 8)
    y = module(torch.randn(2, M, 16))
    y += 1
    torch.relu_(y).sum().backward()
    assert module.weight.grad is not None
