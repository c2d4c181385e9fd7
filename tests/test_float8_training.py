"""What of ao-float8 needs more than it declares: examples with the Trainer of Transformers and the
picture of losses, and experts of Transformers, also with an optimizer of ao-optim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ao_core.testing.sharding_contract import run_two_processes

TESTS = Path(__file__).resolve().parent
EXAMPLES = Path(__file__).resolve().parents[1] / "packages/ao-float8/examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), str(TESTS), *sys.path])


@pytest.mark.filterwarnings("ignore")  # of Transformers and accelerate
def test_trainer(tmp_path: Path) -> None:
    """Accumulation and checkpointing, and an ordinary checkpoint at the end."""
    import train_transformers
    from transformers import AutoModelForCausalLM

    from ao_float8 import Float8Linear

    out = tmp_path / "trained"
    sizes = "--width 64 --layers 1 --steps 20 --batch 4 --context 32 --every-layer --emulate"
    model, log = train_transformers.main([*sizes.split(), "--checkpointing", "--out", str(out)])
    assert sum(isinstance(m, Float8Linear) for m in model.modules()) == 7
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    again = AutoModelForCausalLM.from_pretrained(out)
    assert not any(isinstance(m, Float8Linear) for m in again.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.float()), name


def test_picture_of_losses(tmp_path: Path) -> None:
    import train_llama

    runs = [
        {
            "recipe": recipe,
            "parameters": 117e6,
            "losses": [5.5 * share / (1 + step) + 1 for step in range(40)],
            "held_out": 1.2,
            "ms": 10.0,
        }
        for recipe, share in (("bf16", 1.0), ("rowwise", 1.001))
    ]
    curves, picture = tmp_path / "curves.json", tmp_path / "losses.png"
    curves.write_text(json.dumps(runs))
    assert train_llama.main(["--draw", str(curves), str(picture)]) == runs
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_mixture_of_experts_sharded() -> None:
    import moe_training

    run_two_processes(moe_training.train_sharded)


def test_codes_of_experts_behind_a_low_bit_optimizer() -> None:
    """Its kernels write to weights whose codes are kept."""
    import moe_training

    (found, losses), (wanted, exact) = (
        moe_training.trained(moe_training.converted(cache)) for cache in ("step", "pass")
    )
    assert losses == exact and losses[-1] < losses[0] - 0.3
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore")  # of Transformers under a compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixture_of_experts_compiled(dtype: torch.dtype) -> None:
    """Compiled, Transformers calls an op of its own in float32, and torch's in bfloat16."""
    import moe_training

    ordinary, model = moe_training.mixtral().to(dtype), moe_training.converted().to(dtype)
    exact, wanted = (m(input_ids=moe_training.tokens()).logits for m in (ordinary, model))
    assert not torch.equal(exact, wanted)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(compiled(input_ids=moe_training.tokens()).logits, wanted)
