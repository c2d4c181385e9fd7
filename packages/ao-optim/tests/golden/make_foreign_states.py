"""Makes foreign_states.safetensors: states that torchao and bitsandbytes made, as plain tensors,
and what these libraries say that they hold.

    pip install torch==2.13.0 torchao==0.18.0 bitsandbytes==0.50.2 safetensors
    python make_foreign_states.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import torchao.optim
from bitsandbytes.functional import dequantize_blockwise
from safetensors.torch import save_file
from torch import nn

KINDS = {
    "torchao.AdamW8bit": torchao.optim.AdamW8bit,
    "torchao.AdamW4bit": torchao.optim.AdamW4bit,
    "torchao.AdamWFp8": torchao.optim.AdamWFp8,
    "bitsandbytes.AdamW8bit": bnb.optim.AdamW8bit,
    "bitsandbytes.Lion8bit": bnb.optim.Lion8bit,
}


def trained(kind: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(16, 257 if "bits" in kind.__module__ else 256))]
    params.append(nn.Parameter(torch.randn(10)))
    optimizer = kind(params, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p) * torch.logspace(-3, 0, p.shape[-1])
        optimizer.step()
    return optimizer.state_dict()


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    metadata = {}
    for name, kind in KINDS.items():
        state = trained(kind)
        metadata[name] = json.dumps(state["param_groups"], default=float)
        for key, record in state["state"].items():
            nested = record.pop("__bnb_optimizer_quant_state__", {})
            for field, x in {**record, **nested}.items():
                place = f"{name}/{key}/{field}"
                if hasattr(x, "__tensor_flatten__"):
                    for inner in x.__tensor_flatten__()[0]:
                        tensors[f"{place}/{inner}"] = getattr(x, inner)
                    tensors[f"{place}/expected"] = x.dequantize()
                    metadata[place] = type(x).__name__
                else:
                    tensors[place] = torch.as_tensor(x)
            for n in (1, 2):
                if f"absmax{n}" in nested:
                    tensors[f"{name}/{key}/state{n}/expected"] = dequantize_blockwise(
                        nested[f"state{n}"],
                        absmax=nested[f"absmax{n}"],
                        code=nested[f"qmap{n}"],
                        blocksize=256,
                    )
    tensors = {name: x.detach().contiguous().clone() for name, x in tensors.items()}
    save_file(tensors, Path(__file__).with_name("foreign_states.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
