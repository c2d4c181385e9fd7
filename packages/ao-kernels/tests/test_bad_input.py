"""What linears are not to be given, and what is odd but allowed: on a CPU and on a GPU.

Every refusal names the op, what was given and what is allowed, whichever kernel would have taken
the call. M tokens, N output features, K input features.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from grouped_contract import (
    Float8,
    Float8Dynamic,
    Float8Int4,
    Int4,
    Int8,
    Int8Dynamic,
    Intx,
)
from test_linear_fuzz import LINEARS, contract_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ao_kernels import OPS, cuda, triton
from ao_kernels.ops import quantize_tensorwise

GROUPED = {each.op.name: each for each in (Float8, Float8Dynamic, Float8Int4, Int4, Int8)}
GROUPED |= {each.op.name: each for each in (Int8Dynamic, Intx)}
NAMES = [*LINEARS, *sorted(GROUPED)]
DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
]
ELSEWHERE = {"cpu": "meta", "cuda": "cpu"}
EACH = pytest.mark.parametrize("name", NAMES)
ON = pytest.mark.parametrize("device", DEVICES)


def call_of(name: str, device: str) -> dict[str, Any]:
    """Arguments that fit, by parameter: of a bfloat16 call with a bias of its own."""
    op = OPS[name]
    source = GROUPED[name]().calls if name in GROUPED else contract_of(op).samples
    args = next(iter(source(torch.bfloat16))).args
    names = [argument.name for argument in op.schema.arguments]
    given = {
        n: a.to(device) if isinstance(a, Tensor) else a for n, a in zip(names, args, strict=True)
    }
    lead = given["codes"].shape[:-1]
    given["bias"] = torch.randn(lead, device=device).bfloat16()
    assert given["scale"].shape[-2] in (1, lead[-1])
    return given


def wrong_calls(given: dict[str, Any], device: str) -> Iterator[tuple[type[Exception], str, dict]]:
    """The exception, what its message matches, and the arguments that are replaced."""
    x, codes, scale, bias = (given[n] for n in ("x", "codes", "scale", "bias"))
    K = x.shape[-1]
    yield TypeError, "x has dtype torch.int32; allowed are torch.float32", {"x": x.int()}
    yield TypeError, "x has dtype torch.bool; allowed are", {"x": x.bool()}
    yield ValueError, "x has ", {"x": x.new_tensor(1.0)}
    yield (
        ValueError,
        rf"codes have \d+ .*{K + 8} input features",
        {"x": torch.cat((x, x[..., :8]), -1)},
    )
    yield ValueError, f"codes have .*{K - 1} input features|codes have", {"x": x[..., :-9]}
    yield TypeError, r"codes have dtype torch\.float32; they must be", {"codes": codes.float()}
    yield TypeError, r"codes have dtype torch\.int64; they must be", {"codes": codes.long()}
    yield ValueError, r"codes have shape \(\d+,\)", {"codes": codes.flatten()}
    yield ValueError, "scale has shape", {"scale": torch.cat((scale, scale), -1)}
    yield ValueError, "scale has shape", {"scale": torch.cat((scale, scale, scale), -2)}
    yield ValueError, "scale has shape", {"scale": scale.flatten()}
    yield TypeError, r"scale has dtype torch\.float16; it must be", {"scale": scale.half()}
    yield ValueError, "bias has shape .* must be", {"bias": bias[..., :-1]}
    yield TypeError, r"bias has dtype torch\.int32; it must be", {"bias": bias.int()}
    for name in ("group_size", "block_n", "block_k"):
        if name in given:
            for size in (0, -8):
                yield ValueError, f"group_size is {size}|blocks are .*{size}", {name: size}
    if "bits" in given:
        yield ValueError, "bits is 9; codes have 1 to 8", {"bits": 9}
        yield ValueError, "bits is 0; codes have 1 to 8", {"bits": 0}
    if "zero" in given:
        yield ValueError, "zero is .*must be like scale", {"zero": scale[..., :1].double()}
    if "activation" in given:
        yield ValueError, "activation is 'word', not", {"activation": "word"}
    if "x_scale" in given:
        yield ValueError, r"x_scale has shape \(2,\)", {"x_scale": torch.ones(2, device=device)}
        yield TypeError, "x_scale has dtype", {"x_scale": given["x_scale"].double()}
    there = ELSEWHERE[device]
    for name, value in given.items():
        if isinstance(value, Tensor) and name != "x":
            yield RuntimeError, f"and {name} on {there}; move them", {name: value.to(there)}


@EACH
@ON
def test_refusals_name_the_op_and_what_was_given(name: str, device: str) -> None:
    op, given = OPS[name], call_of(name, device)
    assert op(*given.values()).isfinite().all()
    for kind, message, changed in wrong_calls(given, device):
        for call in (op, op.why_not, op.choice):
            with pytest.raises(kind, match=rf"^{name}: .*({message})"):
                call(*(given | changed).values())


@pytest.mark.parametrize("name", LINEARS)
@ON
def test_empty_tensors(name: str, device: str) -> None:
    """No tokens, no output features; without input features the bias is left."""
    op, given = OPS[name], call_of(name, device)
    x, codes, scale, bias = (given[n] for n in ("x", "codes", "scale", "bias"))
    N = codes.shape[0]
    assert op(*(given | {"x": x[:0]}).values()).shape == (0, N)
    assert op(*(given | {"x": x.new_empty(2, 0, x.shape[-1])}).values()).shape == (2, 0, N)
    rows = scale[:0] if scale.shape[0] == N else scale
    none = {"codes": codes[:0], "scale": rows, "bias": bias[:0]}
    if given.get("zero") is not None:
        none["zero"] = given["zero"][:0] if scale.shape[0] == N else given["zero"]
    assert op(*(given | none).values()).shape == (*x.shape[:-1], 0)
    none = {"x": x[..., :0], "codes": codes[:, :0], "scale": scale[:, :0]}
    if given.get("zero") is not None:
        none["zero"] = given["zero"][:, :0]
    y = op(*(given | none).values())
    assert torch.equal(y, bias.expand(*x.shape[:-1], N))


@EACH
@ON
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scales_that_are_not_finite(name: str, device: str, value: float) -> None:
    """They reach the output features that they are of, and no other."""
    op, given = OPS[name], call_of(name, device)
    clean = op(*given.values())
    scale = given["scale"].clone()
    scale[..., 0, 0] = value  # of every expert
    y = op(*(given | {"scale": scale}).values())
    expected = op.reference(*(given | {"scale": scale}).values())
    assert not expected.isfinite().all() and torch.equal(y.isfinite(), expected.isfinite())
    assert not math.isnan(value) or torch.equal(y.isnan(), expected.isnan())
    # Bit by bit on a CPU; a kernel of a GPU may convert a tile with odd scales in another way.
    torch.testing.assert_close(
        y[y.isfinite()], clean[y.isfinite()], **({"rtol": 0, "atol": 0} if device == "cpu" else {})
    )


def test_a_scale_elsewhere_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^quantize_tensorwise: .*scale on meta; move them"):
        quantize_tensorwise(torch.ones(3), torch.int8, torch.ones((), device="meta"))


@pytest.mark.parametrize("name", sorted({*LINEARS, *GROUPED} & set(cuda.KERNELS)))
def test_a_gpu_that_the_extension_has_no_code_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is a sentence, and Triton's kernels are asked next."""
    if cuda.unavailable:
        pytest.skip(cuda.unavailable)
    from ao_kernels.cuda import weight

    why = "ao_kernels._cuda was built without code for compute capability 8.0"
    monkeypatch.setattr(weight, "_device_refusal", lambda index: why)
    importlib.import_module(f"ao_kernels.cuda.{name}")
    mine = [kernel for kernel in OPS[name].kernels if kernel.backend == "cuda"]
    args = tuple(call_of(name, "cpu").values())
    assert mine and all(kernel.supports(*args) == why for kernel in mine)
    assert name in triton.KERNELS


@pytest.mark.triton
@pytest.mark.parametrize("name", [name for name in NAMES if name in triton.KERNELS])
def test_a_gpu_that_triton_has_no_code_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ao_kernels.triton import tiles

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a T4")
    why = "a T4 has compute capability 7.5; the Triton kernels need 8.0 or later"
    assert tiles._device_refusal(0) == why
    args = call_of(name, "cpu").values()
    importlib.import_module(f"ao_kernels.triton.{name}")
    mine = [kernel for kernel in OPS[name].kernels if kernel.backend == "triton"]
    with FakeTensorMode():
        there = [
            torch.empty(a.shape, dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
            for a in args
        ]
    assert mine and all(kernel.supports(*there) == why for kernel in mine)
