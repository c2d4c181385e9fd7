"""Where a model is loaded to, and the places that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, INT4, INT8, assert_same_state, load, logits, token_ids
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.integrations.accelerate import compute_module_sizes

from ao_core.tensor import QTensor
from ao_hf import AoConfig
from ao_hf.quantizer import AoQuantizer
from ao_hf.selection import select

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize(
    "device_map", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}], ids=str
)
@pytest.mark.parametrize("kind", ["tied", "mixtral"])
def test_on_the_cpu(kind: str, device_map: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = AoConfig(INT4, include_embedding=True)
    model = load(checkpoint(kind), config)
    assert_same_state(model, load(checkpoint(kind), config, device_map=device_map))
    model.save_pretrained(tmp_path)
    placed = load(tmp_path, device_map=device_map)
    assert_same_state(model, placed)
    placed.save_pretrained(tmp_path / "again")
    assert_same_state(model, load(tmp_path / "again"))


def offloading(place: str, folder: Path) -> dict[str, Any]:
    device_map = {
        "model.embed_tokens": 0,
        "model.layers": 0,
        "model.norm": 0,
        "model.rotary_emb": 0,
    }
    return {"device_map": device_map | {"lm_head": place}, "offload_folder": folder}


@pytest.mark.parametrize("place", ["disk", "cpu"])
def test_offloading_is_refused(place: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Transformers would pair the float tensors on disk with quantized ones."""
    message = (
        f"the device_map offloads parts of the model to {place}, "
        "which quantized weights do not support"
    )
    with pytest.raises(ValueError, match=message):
        load(checkpoint("llama"), INT8, **offloading(place, tmp_path / "offload"))
    load(checkpoint("llama"), INT8).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "saved", **offloading(place, tmp_path / "offload"))


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_offloading_that_auto_decides_on_is_refused(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = {
        "device_map": "auto",
        "max_memory": {"cpu": "60KB"},
        "offload_folder": tmp_path / "o",
    }
    with pytest.raises(ValueError, match="offloads parts of the model to disk"):
        load(checkpoint(kind), INT8, **options)
    load(checkpoint(kind), INT8).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="offloads parts of the model to disk"):
        load(tmp_path / "saved", **options)


def test_tensor_parallel_loading_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read; a process group is not needed to find out."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    model.config.distributed_config = DistributedConfig()
    quantizer = AoQuantizer(AoConfig(INT4), pre_quantized=False)
    with pytest.raises(NotImplementedError, match="load it whole, then shard its parameters"):
        quantizer.preprocess_model(model, checkpoint_files=[])


@pytest.mark.parametrize("config", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize("kind", ["tied", "gpt_oss"])
def test_device_maps_count_quantized_bytes(kind: str, config: Any, checkpoint: Checkpoint) -> None:
    """The sizes that "auto" works with are those that the loaded model has."""
    settings = AoConfig(config, include_embedding=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.bfloat16)
    quantizer = AoQuantizer(settings, pre_quantized=False)
    quantizer.selection = select(model, settings)
    sizes, _ = compute_module_sizes(model, quantizer)
    report = load(checkpoint(kind), settings).quantization_report
    for row in report.converted:
        assert sizes[row.fqn.removesuffix(".weight")] >= row.bytes_after or "experts" in row.fqn
    assert abs(sizes[""] - report.bytes_after) <= 0.001 * report.bytes_after


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tied", "mixtral", "gpt_oss"])
def test_on_a_gpu(kind: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Codes are the same wherever they were made, and go from one device to the other and back."""
    config = AoConfig(INT4, include_embedding=True)
    model = load(checkpoint(kind), config)
    on_gpu = load(checkpoint(kind), config, device_map="cuda")
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    on_gpu.save_pretrained(tmp_path)
    assert_same_state(model, load(tmp_path))
    again = load(tmp_path, device_map="cuda")
    assert all(p.is_cuda for p in again.parameters() if isinstance(p, QTensor))
    ids = token_ids().cuda()
    with torch.no_grad():
        assert torch.equal(on_gpu(ids).logits, again(ids).logits)
    out = again.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (2, 13)
    torch.testing.assert_close(again(ids).logits.cpu(), logits(model), rtol=0.1, atol=0.1)
