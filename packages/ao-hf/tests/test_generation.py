"""generate with the caches of Transformers, and compiled decoding."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import FORMATS, INT4, load, token_ids
from transformers import CompileConfig

Checkpoint = Callable[[str], Path]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("name", FORMATS)
def test_static_cache_equals_dynamic(name: str, checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), FORMATS[name])
    dynamic = model.generate(token_ids(), **GREEDY)
    assert dynamic.shape == (2, 15) and torch.equal(dynamic[:, :9], token_ids())
    static = model.generate(token_ids(), cache_implementation="static", **GREEDY)
    assert torch.equal(dynamic, static)


def test_compiled_decoding(checkpoint: Checkpoint) -> None:
    """The whole decoding step is one graph. Traced to the end, but not by Inductor: ao-quant tests
    what that makes of the formats."""
    torch._dynamo.reset()
    model = load(checkpoint("tied"), INT4)
    assert model.hf_quantizer.is_compileable
    expected = model.generate(token_ids(1), **GREEDY)
    compiling = CompileConfig(fullgraph=True, backend="aot_eager")
    compiling._compile_all_devices = True  # on a CPU Transformers compiles only when told so
    graphs = torch._dynamo.utils.counters["stats"]
    got = model.generate(
        token_ids(1), cache_implementation="static", compile_config=compiling, **GREEDY
    )
    assert torch.equal(got, expected)
    assert graphs["unique_graphs"] >= 1


def test_beams_and_sampling(checkpoint: Checkpoint) -> None:
    model = load(checkpoint("llama"), INT4)
    beams = model.generate(token_ids(1), num_beams=3, **GREEDY)
    assert beams.shape[0] == 1
    torch.manual_seed(0)
    options = GREEDY | {"do_sample": True, "num_return_sequences": 2}
    assert model.generate(token_ids(1), **options).shape[0] == 2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's advice on TF32 and CUDA graphs
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("kind", ["tied", "qwen3_moe"])
def test_static_cache_on_a_gpu(kind: str, checkpoint: Checkpoint) -> None:
    """There Transformers compiles the decoding step without being told."""
    torch._dynamo.reset()
    model = load(checkpoint(kind), INT4, dtype=torch.float32, device_map="cuda")
    ids = token_ids(1).cuda()
    dynamic = model.generate(ids, **GREEDY)
    static = model.generate(ids, cache_implementation="static", **GREEDY)
    assert torch.equal(dynamic, static)
