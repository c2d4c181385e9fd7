"""Fused mixtures of experts: quantized whole, on every path that Transformers computes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import (
    FORMATS,
    INT4,
    INT8,
    assert_same_state,
    difference,
    load,
    logits,
    token_ids,
)

from ao_core.tensor import QTensor
from ao_hf import AoConfig

Checkpoint = Callable[[str], Path]
KINDS = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]
PATHS = ["grouped_mm", "eager", "batched_mm"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_products(kind: str, path: str, checkpoint: Checkpoint) -> None:
    """Each path computes with the weights that dequantize() shows, bit for bit what the codes stand
    for."""
    exact = load(checkpoint(kind), INT8, dtype=torch.float32, experts_implementation=path)
    layer = exact.model.layers[0].mlp
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = layer(x)
        exact.dequantize()
        assert not isinstance(layer.experts.gate_up_proj, QTensor)
        second = layer(x)
    first, second = (y[0] if isinstance(y, tuple) else y for y in (first, second))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


# Formats whose grouped products have an op of their own.
GROUPED = ["int4", "int4 hqq", "int3", "int8", "int8 dynamic"]
GROUPED += ["float8", "float8 dynamic", "float8 block", "float8 int4"]


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_grouped_ops_and_the_eager_loop(
    kind: str, name: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's experts in one op a projection give what its loop over experts gives."""
    found = {}
    for path in ("eager", "grouped_mm"):
        model = load(
            checkpoint(kind), FORMATS[name], dtype=torch.float32, experts_implementation=path
        )
        kind_of_weight = type(model.model.layers[0].mlp.experts.down_proj)
        with calls_of_grouped_ops(kind_of_weight, monkeypatch) as calls:
            found[path] = logits(model)
        assert calls == ([True] * 4 if path == "grouped_mm" else [])  # two layers, two products
    torch.testing.assert_close(found["grouped_mm"], found["eager"], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
@pytest.mark.parametrize("name", ["int4", "float8"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_grouped_experts_generate_and_compile(kind: str, name: str, checkpoint: Checkpoint) -> None:
    """bfloat16, token by token, and a layer's experts as one graph."""
    model = load(checkpoint(kind), FORMATS[name], experts_implementation="grouped_mm")
    loop = load(checkpoint(kind), FORMATS[name], experts_implementation="eager")
    assert difference(logits(loop), logits(model)) < 0.02
    ids = token_ids(1, 5)
    made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 9)
    for dtype in (torch.bfloat16, torch.float32):  # the latter through an op of Transformers
        layer = load(
            checkpoint(kind), FORMATS[name], dtype=dtype, experts_implementation="grouped_mm"
        ).model.layers[0]
        x = torch.randn(2, 5, 64, dtype=dtype)
        torch._dynamo.reset()
        compiled = torch.compile(layer.mlp, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.equal(compiled(x), layer.mlp(x))


@contextmanager
def calls_of_grouped_ops(kind: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each grouped product of such weights inside: whether an op computed it."""
    calls: list[bool] = []
    compute = kind.grouped_linear

    def record(*args: Any) -> Any:
        y = compute(*args)
        calls.append(y is not None)
        return y

    with monkeypatch.context() as patch:
        patch.setattr(kind, "grouped_linear", record)
        yield calls


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """From a checkpoint with an expert a tensor to one with fused codes, and back again."""
    model = load(checkpoint(kind), INT4)
    experts = model.model.layers[1].mlp.experts
    assert experts.gate_up_proj.dim() == 3 and isinstance(experts.down_proj, QTensor)
    assert difference(logits(load(checkpoint(kind))), logits(model)) < 0.5
    model.save_pretrained(tmp_path / "once")
    with safe_open(tmp_path / "once" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.layers.1.mlp.experts.gate_up_proj_codes" in names
    assert "model.layers.1.mlp.experts.gate_up_proj" not in names
    once = load(tmp_path / "once")
    assert_same_state(model, once)
    assert torch.equal(logits(model), logits(once))
    once.save_pretrained(tmp_path / "twice", save_original_format=False, max_shard_size="20KB")
    assert_same_state(model, load(tmp_path / "twice"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = load(checkpoint("mixtral"), FORMATS[name])
    model.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))
    ids = token_ids(1, 5)
    assert model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 8)


def test_experts_along_their_input(checkpoint: Checkpoint) -> None:
    """gpt-oss stores (E, K, N): groups run along K all the same, through a transposed view."""
    model = load(checkpoint("gpt_oss"), INT4)
    w = load(checkpoint("gpt_oss")).model.layers[0].mlp.experts.gate_up_proj
    q = model.model.layers[0].mlp.experts.gate_up_proj
    assert q.shape == w.shape == (4, 64, 272) and q.transposed
    assert q.codes.shape == (4, 272, 32) and q.scale.shape == (4, 272, 2)
    assert difference(w.detach(), q.dequantize()) < 0.12


def test_dequantized_experts_save_in_their_original_form(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = load(checkpoint("mixtral"), INT8)
    model.dequantize()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in set(file.keys())
    assert_same_state(model, load(tmp_path))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_gradients_pass_through(kind: str, path: str, checkpoint: Checkpoint) -> None:
    """What is in front of quantized experts gets the gradient that float experts give."""
    model = load(checkpoint(kind), INT8, dtype=torch.float32, experts_implementation=path)
    experts = model.model.layers[0].mlp.experts
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    index = torch.tensor([[0, 2], [1, 3], [2, 0], [3, 1], [0, 1], [2, 3]])
    weights = torch.full((6, 2), 0.5)
    grads = []
    for _ in range(2):
        experts(x, index, weights).square().sum().backward()
        grads.append(x.grad)
        x.grad = None
        model.dequantize() if hasattr(model, "hf_quantizer") else None
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_experts_can_be_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = load(checkpoint("mixtral"), AoConfig(INT4, ["experts"]))
    assert not isinstance(model.model.layers[0].mlp.experts.down_proj, QTensor)
    model.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))
