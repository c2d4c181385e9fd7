"""What is cast once: inputs and gradients that layers share, weights between two steps."""

from __future__ import annotations

import copy
import gc
import weakref
from unittest import mock

import pytest
import torch
from layers import EMULATED, counted, emulated, layer
from torch import Tensor, nn

from ao_float8 import Float8Linear, Float8LinearConfig, operands
from ao_float8.cast_cache import GRADIENTS, INPUTS


class Attention(nn.Module):
    """Three layers that read one tensor."""

    def __init__(self, config: Float8LinearConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(32, n, config, bias=False) for n in (16, 32, 48))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return torch.cat([each(h) for each in self.layers], -1)


def grads(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    x = x.detach().requires_grad_()
    y = module(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def alone(module: Attention, x: Tensor) -> list[Tensor]:
    """Without sharing: every layer reads a copy."""
    other = copy.deepcopy(module)
    other.forward = lambda x: torch.cat(  # type: ignore[method-assign]
        [each(torch.tanh(x).clone()) for each in other.layers], -1
    )
    return grads(other, x)


@pytest.mark.parametrize("recipe", EMULATED)
def test_one_input_is_cast_once(recipe: str) -> None:
    module, x = Attention(EMULATED[recipe]), torch.randn(40, 32)
    wanted = alone(module, x)
    with counted() as casts:
        found = grads(module, x)
    assert sum(not is_weight for _, is_weight in casts) == 1 + 3  # one input, three gradients
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # of dx the sum has an order
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[2], wanted[2])


def test_a_changed_input_is_cast_again() -> None:
    module, x = layer(32, 16), torch.randn(8, 32)
    first = module(x)
    x.mul_(2)
    second = module(x)
    assert not torch.equal(first, second)
    assert torch.equal(second, module(x.clone()))


def test_other_dtypes_and_scalings_are_cast_again() -> None:
    x = torch.randn(32, 32)
    for config in (
        *EMULATED.values(),
        emulated(input_dtype=torch.float8_e5m2, grad_output_dtype=torch.float8_e4m3fn),
    ):
        module = layer(32, 16, config)
        assert torch.equal(module(x), module(x.clone()))


def test_directions_that_are_missing_are_made() -> None:
    module, x = layer(32, 16), torch.randn(8, 32)
    with torch.no_grad():
        y = module(x)
    with counted() as casts:
        module(x).sum().backward()
        with torch.no_grad():
            assert torch.equal(module(x), y)  # both directions serve one
    assert casts.count(("both", False)) == 1 and ("rows", False) not in casts


def test_codes_go_with_their_tensor() -> None:
    module = layer(32, 16)
    x = torch.randn(8, 32)
    with torch.no_grad():
        module(x)
    assert INPUTS.last.codes is not None
    codes = weakref.ref(INPUTS.last.codes.rows)
    del x
    gc.collect()
    assert INPUTS.last.codes is None and codes() is None


def test_codes_do_not_keep_a_gradient() -> None:
    module = layer(32, 16)
    x = torch.randn(8, 32, requires_grad=True)
    module(x).sum().backward()
    gc.collect()
    assert GRADIENTS.last.codes is None


def test_one_gradient_is_cast_once() -> None:
    """Layers whose outputs are added, as attention and MLP in a parallel block."""
    a, b = layer(32, 16, bias=False), layer(48, 16, bias=False)
    x, z = torch.randn(24, 32, requires_grad=True), torch.randn(24, 48, requires_grad=True)
    dy = torch.randn(24, 16)
    y = a(x) + b(z)
    with counted() as casts:
        y.backward(dy)
    assert casts == [("both", False)]
    for module, tensor in ((a, x), (b, z)):
        found = tensor.grad, module.weight.grad
        tensor.grad = module.weight.grad = None
        module(tensor).backward(dy.clone())
        assert torch.equal(found[0], tensor.grad) and torch.equal(found[1], module.weight.grad)


def test_inference_tensors() -> None:
    module = layer(32, 16)
    x = torch.randn(8, 32)
    wanted = module(x).detach()
    with torch.inference_mode():
        assert torch.equal(module(x + 0), wanted)


# --- weights


def micro_batches(module: nn.Module, n: int) -> int:
    """Casts of weights in n passes."""
    with counted() as casts:
        for seed in range(n):
            x = torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))
            module(x.requires_grad_()).square().sum().backward()
    return sum(is_weight for _, is_weight in casts)


def test_a_weight_is_cast_once_a_step() -> None:
    stepping, plain = layer(32, 48, emulated(weight_cache="step")), layer(32, 48)
    plain.load_state_dict(stepping.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (stepping, plain)]
    for _ in range(3):
        assert micro_batches(stepping, 4) == 1
        assert micro_batches(plain, 4) == 8  # N > M: forward, and again in backward
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(stepping.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert stepping._weight_codes.nbytes == 2 * 32 * 48 + 2 * 4
    stepping._weight_codes.drop()
    assert micro_batches(stepping, 1) == 1


@pytest.mark.parametrize("N", [16, 48])  # codes are held for backward (N <= M), or not
def test_a_scale_is_found_once_a_step(N: int) -> None:
    """By the first of several passes, and kept in 4 bytes."""
    module, scales = layer(32, N, emulated(weight_cache="scale")), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    tensorwise = operands._CASTS["tensorwise"]

    def spy(x: Tensor, *others: object) -> operands.Codes:
        if others[-1]:  # of a weight
            scales.append(others[3] is not None)
        return tensorwise(x, *others)  # type: ignore[arg-type]

    again = [] if N <= 24 else [True]  # what backward casts knows its scale
    with mock.patch.dict(operands._CASTS, {"tensorwise": spy}):
        for _ in range(2):
            for found in (False, True, True):
                module(torch.randn(24, 32, requires_grad=True)).square().sum().backward()
                assert scales == [found, *again]
                scales.clear()
            optimizer.step()
            optimizer.zero_grad()
    assert module._weight_codes.nbytes == 4


def test_codes_of_inference_mode_do_not_serve_training() -> None:
    """Backward cannot save them."""
    module, x = layer(32, 48, emulated(weight_cache="step")), torch.randn(24, 32)
    with torch.inference_mode():
        y = module(x)
        with counted() as casts:
            assert torch.equal(module(x), y)
        assert not any(is_weight for _, is_weight in casts)
    assert micro_batches(module, 2) == 1


def test_changes_of_a_weight_that_fsdp_gathers_are_seen() -> None:
    """As of any other, before it is sharded."""
    config = emulated(weight_cache="step", enable_fsdp_float8_all_gather=True)
    module, x = layer(32, 48, config), torch.randn(24, 32)
    for change in (
        lambda: module.weight.add_(1),
        lambda: module.weight.detach().mul_(2),
        lambda: module.weight.view(-1).mul_(2),
        lambda: module.state_dict()["weight"].mul_(2),
    ):
        with torch.no_grad():
            y = module(x)
            change()
            z = module(x)
        assert not torch.equal(y, z)
        assert torch.equal(z, Float8Linear.from_float(module.to_float(), emulated())(x))
    module.to(torch.bfloat16)


class Raw(torch.optim.Optimizer):
    """Writes past the version, as optimizers with their own kernels do."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.data.view(-1).numpy()[:] *= 1.5


def changes(module: Float8Linear) -> list:
    def load() -> None:
        module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()})

    def swap() -> None:
        module.weight = nn.Parameter(module.weight.detach() * 3)

    def data() -> None:
        module.weight.data = module.weight.detach() * 4

    def in_place() -> None:
        with torch.no_grad():
            module.weight.add_(1)

    return [load, swap, data, in_place, Raw(module.parameters(), {}).step]


@pytest.mark.parametrize("cache", ["step", "scale"])
@pytest.mark.parametrize("index", range(5))
def test_changes_of_a_weight_are_seen(index: int, cache: str) -> None:
    module = layer(32, 48, emulated(weight_cache=cache))
    x = torch.randn(24, 32)
    y = module(x)
    changes(module)[index]()
    z = module(x)
    assert not torch.equal(y, z)
    assert torch.equal(z, Float8Linear.from_float(module.to_float(), module.config)(x))
