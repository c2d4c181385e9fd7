"""float8_dynamic_linear against its float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from float8_samples import OnReference, float8_activations, magnitude_float8, sample_float8
from torch import Tensor

from ao_core.testing.op_contract import Sample
from ao_kernels.ops import float8_dynamic_linear, layout

ACTIVATIONS = ("row", "tensor", "block")


class TestFloat8DynamicLinear(OnReference):
    op = float8_dynamic_linear

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for index, (name, *args, bias) in enumerate(sample_float8(dtype)):
            activation = ACTIVATIONS[index % 3]
            yield Sample(f"{name}, {activation} activations", (*args, activation, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, block_n, block_k, activation, bias = args
        q = float8_activations(x, activation, block_k)
        return magnitude_float8(q, codes, scale, block_n, block_k, bias)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, block_n, block_k, _, bias = args
        w_NK = layout.dequantize_float8(codes, scale, block_n, block_k, torch.float64)
        return layout.linear(x, w_NK, bias)


def identity(K: int) -> tuple[Tensor, Tensor]:
    """Codes and scale of the unit matrix: the result is what the activations became."""
    return torch.eye(K).to(torch.float8_e4m3fn), torch.ones(1, 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_have_one_scale_for_each_of(activation: str) -> None:
    x = torch.randn(5, 48) * torch.logspace(-3, 3, 48)
    shares = {"tensor": x.reshape(1, -1), "row": x, "block": x.reshape(15, 16)}[activation]
    scale = shares.abs().amax(1, keepdim=True) / 448
    expected = (shares * (1 / scale)).to(torch.float8_e4m3fn).float() * scale
    codes, ones = identity(48)
    if activation == "block":
        ones = torch.ones(3, 3)
    y = float8_dynamic_linear(
        x,
        codes,
        ones,
        16 if activation == "block" else 48,
        16 if activation == "block" else 48,
        activation,
    )
    torch.testing.assert_close(y, expected.reshape(5, 48), rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_where_nan_and_inf_go(activation: str, value: float) -> None:
    x, (codes, scale) = torch.randn(4, 32), identity(32)
    clean = float8_dynamic_linear(x, codes, scale, 32, 32, activation)
    x[1, 5] = value
    y = float8_dynamic_linear(x, codes, scale, 32, 32, activation)
    bad = slice(None) if activation == "tensor" else slice(1, 2)
    assert y[bad].isnan().all()
    if activation != "tensor":
        assert torch.equal(y[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_activations(activation: str) -> None:
    codes, scale = identity(32)
    zeros = torch.zeros(3, 32)
    assert torch.equal(float8_dynamic_linear(zeros, codes, scale, 32, 32, activation), zeros)
    huge = torch.full((3, 32), torch.finfo(torch.float32).max / 4)
    y = float8_dynamic_linear(huge, codes, scale, 32, 32, activation)
    torch.testing.assert_close(y, huge, rtol=1e-6, atol=0)
    for tiny in (1e-40, 1e-45):
        x = torch.full((3, 32), tiny)
        y = float8_dynamic_linear(x, codes, scale, 32, 32, activation)
        assert ((y - x).abs() <= torch.finfo(torch.float32).tiny).all()


def test_refusals_are_in_the_callers_words() -> None:
    x, codes, scale = (
        torch.randn(3, 32),
        torch.zeros(8, 32).to(torch.float8_e4m3fn),
        torch.ones(8, 1),
    )
    with pytest.raises(ValueError, match="activation is 'token', not 'tensor' or 'row' or 'block'"):
        float8_dynamic_linear(x, codes, scale, 1, 32, "token")
    with pytest.raises(ValueError, match="codes have 32 columns; x has 31"):
        float8_dynamic_linear(x[:, 1:], codes, scale, 1, 32, "row")
    with pytest.raises(ValueError, match=r"take \(8, 1\)"):
        float8_dynamic_linear(x, codes, scale[:4], 1, 32, "row")
    with pytest.raises(TypeError, match=r"x has dtype torch\.int64"):
        float8_dynamic_linear(x.long(), codes, scale, 1, 32, "row")
    with pytest.raises(RuntimeError, match="scale on meta"):
        float8_dynamic_linear(x, codes, scale.to("meta"), 1, 32, "row")


def test_no_input_features() -> None:
    none = torch.zeros(4, 0).to(torch.float8_e4m3fn)
    for activation in ACTIVATIONS:
        y = float8_dynamic_linear(torch.randn(3, 0), none, torch.ones(4, 0), 1, 8, activation)
        assert torch.equal(y, torch.zeros(3, 4)), activation
