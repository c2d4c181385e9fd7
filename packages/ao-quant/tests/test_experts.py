"""Grouped products of quantized experts: which op computes them, and that all ways agree."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from ao_core.errors import UnsupportedOpError
from ao_quant import Float8Tensor, Int8Tensor, IntxTensor, PerBlock, PerGroup, PerRow, PerTensor
from ao_quant.experts import grouped_product

E, N, K = 3, 48, 64
ENDS = [[2, 2, 6], [0, 5, 5], [6, 6, 6], [0, 0, 0]]

# Options of a weight, and the op that its grouped products are.
GROUPED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "int4": (IntxTensor, {"bits": 4, "granularity": PerGroup(32)}, "int4_grouped_linear"),
    "hqq": (
        IntxTensor,
        {"bits": 4, "granularity": PerGroup(32), "algorithm": "hqq"},
        "int4_grouped_linear",
    ),
    "float8 int4": (
        IntxTensor,
        {"bits": 4, "granularity": PerGroup(32), "activation": "float8_row"},
        "float8_int4_grouped_linear",
    ),
    "int3": (IntxTensor, {"bits": 3, "granularity": PerGroup(32)}, "intx_grouped_linear"),
    "int8": (Int8Tensor, {"granularity": PerRow()}, "int8_grouped_linear"),
    "int8 tensor": (Int8Tensor, {"granularity": PerTensor()}, "int8_grouped_linear"),
    "int8 dynamic": (
        Int8Tensor,
        {"activation": "int8_symmetric"},
        "int8_dynamic_grouped_linear",
    ),
    "float8": (Float8Tensor, {}, "float8_grouped_linear"),
    "float8 block": (
        Float8Tensor,
        {"granularity": PerBlock((32, 32)), "activation": "float8_block"},
        "float8_dynamic_grouped_linear",
    ),
    "float8 tensor": (
        Float8Tensor,
        {"granularity": PerTensor(), "activation": "float8_tensor"},
        "float8_dynamic_grouped_linear",
    ),
    "float8 row": (
        Float8Tensor,
        {"activation": "float8_row"},
        "float8_dynamic_grouped_linear",
    ),
}
EACH = pytest.mark.parametrize("name", GROUPED)


def weight(name: str, dtype: torch.dtype = torch.float32) -> Any:
    kind, options, _ = GROUPED[name]
    w = torch.randn(E, N, K, generator=torch.Generator().manual_seed(0))
    return kind.from_float(w.to(dtype), **options)


def tokens(ends: list[int]) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, K, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor(ends, dtype=torch.int32)


def looped(x: Tensor, w: Any, offs: Tensor) -> Tensor:
    """Each expert's tokens through its linear."""
    y, start = torch.zeros(len(x), w.shape[1]), 0
    for expert, end in enumerate(offs.tolist()):
        if end > start:
            y[start:end] = F.linear(x[start:end], w[expert])
        start = end
    return y


@EACH
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_every_way_to_call_it(name: str, ends: list[int]) -> None:
    w, (x, offs) = weight(name), tokens(ends)
    expected = looped(x, w, offs)
    for y in (
        F.grouped_mm(x, w.transpose(-2, -1), offs=offs),
        torch._grouped_mm(x, w.mT, offs=offs),
        torch.ops.aten._grouped_mm(x, w.mT, offs),
        F.grouped_mm(x, w.mT, offs=offs.long()),
        grouped_product(x, w.mT, offs),
    ):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    narrow = F.grouped_mm(x, w.mT, offs=offs, out_dtype=torch.bfloat16)
    assert torch.equal(narrow, F.grouped_mm(x, w.mT, offs=offs).bfloat16())


@EACH
def test_a_part_of_the_experts(name: str) -> None:
    w, (x, offs) = weight(name), tokens([2, 5])
    y = F.grouped_mm(x, w[1:].mT, offs=offs)
    torch.testing.assert_close(y, looped(x, w[1:], offs), rtol=1e-5, atol=1e-5)


@EACH
def test_batched_products_are_groups_of_equal_sizes(name: str) -> None:
    """torch.bmm with the weight on either side, as Transformers computes a few tokens' experts."""
    w, x = weight(name), torch.randn(E, 2, K)
    ends = torch.tensor([2, 4, 6], dtype=torch.int32)
    expected = looped(x.reshape(6, K), w, ends).reshape(E, 2, N)
    torch.testing.assert_close(torch.bmm(x, w.mT), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.bmm(w, x.mT), expected.mT, rtol=1e-5, atol=1e-5)
    chosen = w[torch.tensor([2, 0, 2])]
    again = torch.bmm(x[:, :1], chosen.mT)
    assert torch.equal(again[0], torch.bmm(x[:1, :1], w[2:].mT)[0])
    assert torch.bmm(x[:, :0], w.mT).shape == (E, 0, N)


@EACH
def test_gradients_are_those_of_the_dequantized_weight(name: str) -> None:
    w, (x, offs) = weight(name), tokens([2, 2, 5])
    ours, theirs, traced = (x.clone().requires_grad_() for _ in range(3))
    grad = torch.randn(6, N, generator=torch.Generator().manual_seed(2))
    F.grouped_mm(ours, w.mT, offs=offs).backward(grad)
    looped(theirs, w.dequantize(), offs).backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    product = torch.compile(
        lambda x, offs: F.grouped_mm(x, w.mT, offs=offs), fullgraph=True, backend="aot_eager"
    )
    product(traced, offs).backward(grad)
    torch.testing.assert_close(traced.grad, ours.grad)


@EACH
def test_a_compiled_product_is_the_op(name: str) -> None:
    """One node, that serves other offsets and numbers of tokens."""
    w, nodes = weight(name, torch.bfloat16), []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, offs: F.grouped_mm(x, w.mT, offs=offs),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=note),
        dynamic=True,
    )
    with torch.no_grad():
        for ends in ENDS:
            x, offs = tokens(ends)
            y = F.grouped_mm(x.bfloat16(), w.mT, offs=offs)
            assert torch.equal(compiled(x.bfloat16(), offs), y)
    assert f"ao.{GROUPED[name][2]}.default" in nodes
    assert not [node for node in nodes if "grouped_mm" in node or "grouped_product" in node]


def test_formats_without_a_grouped_op() -> None:
    x, offs = tokens([2, 2, 5])
    for w in (
        IntxTensor.from_float(torch.randn(E, N, K), bits=4, activation="int8_asymmetric"),
        Int8Tensor.from_float(
            torch.randn(E, N, K), activation="int8_static", x_scale=torch.full((1, 1, 1), 0.03)
        ),
    ):
        assert w.grouped_linear(x, offs) is None
        y = F.grouped_mm(x, w.mT, offs=offs)
        torch.testing.assert_close(y, looped(x, w, offs))


def test_refusals_name_what_is_taken() -> None:
    w, (x, offs) = weight("int4"), tokens([2, 2, 6])
    with pytest.raises(UnsupportedOpError, match="2-D tokens sorted by expert, offs, and no bias"):
        torch._grouped_mm(x, w.mT, offs=offs, bias=torch.randn(E, N))
    with pytest.raises(UnsupportedOpError, match="2-D tokens sorted by expert, offs, and no bias"):
        torch._grouped_mm(x.expand(E, 6, K), w.mT)
