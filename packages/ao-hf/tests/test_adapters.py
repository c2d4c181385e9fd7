"""Low-rank adapters on a quantized base train, save and load."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import FORMATS, INT8, assert_same_state, load, logits, token_ids
from torch import Tensor, nn

from ao_core.tensor import QTensor

Checkpoint = Callable[[str], Path]


class Lora(nn.Module):
    """A linear with a low-rank update."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Linear(linear.in_features, 4, bias=False, dtype=torch.bfloat16)
        self.b = nn.Linear(4, linear.out_features, bias=False, dtype=torch.bfloat16)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.b(self.a(x))


def losses(model: nn.Module, steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids, found = token_ids(), []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_an_adapter_of_ones_own(name: str, checkpoint: Checkpoint) -> None:
    """Gradients pass through every quantized layer, down to the first."""
    torch.manual_seed(0)
    model = load(checkpoint("llama"), FORMATS[name]).requires_grad_(False)
    assert model.hf_quantizer.is_trainable and not model.hf_quantizer.is_qat_trainable
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    layer = model.model.layers[0].self_attn
    layer.q_proj, layer.v_proj = Lora(layer.q_proj), Lora(layer.v_proj)
    found = losses(model)
    assert found[-1] < found[0] - 0.05
    assert torch.equal(layer.q_proj.linear.weight, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # an old name, which all of >=5.20 has
def test_activation_checkpointing(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), INT8).requires_grad_(False)
    layer = model.model.layers[0].mlp
    layer.down_proj = Lora(layer.down_proj)
    ids = token_ids()
    grads = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        grads.append(layer.down_proj.b.weight.grad.clone())
        layer.down_proj.b.weight.grad = None
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from peft and Transformers, about each other
def test_peft(checkpoint: Checkpoint, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", r=4)
    load(checkpoint("llama"), FORMATS["int4"]).save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(load(tmp_path / "base"), config)
    base = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    assert isinstance(base.weight, QTensor)
    found = losses(model)
    assert found[-1] < found[0] - 0.05
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(load(tmp_path / "base")))
    assert_same_state(model.unload(), load(tmp_path / "base"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapter_of_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """model.add_adapter: save_pretrained writes the adapter alone, without our header."""
    peft = pytest.importorskip("peft")
    from safetensors import safe_open

    model = load(checkpoint("llama"), INT8)
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=4))
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert all("lora" in name for name in file.keys())  # noqa: SIM118
        assert "ao_tensors" not in file.metadata()
