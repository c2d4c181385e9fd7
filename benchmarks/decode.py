"""Tokens a second of whole models: each format against bfloat16 and, if installed, llama.cpp.

    python3 -m nox -s peer                               once: the environment of llama.cpp
    python3 -m nox -s bench -- decode                    SmolLM2-135M
    python3 -m nox -s bench -- decode --model llama-1b   a 1B shape, random weights

Columns: greedy decoding in plain `generate`; the same with a static cache and a step compiled with
fullgraph=True; a prompt of 512 tokens. Decoding starts behind --context tokens, for the peer as
well, since attention costs more behind more. All sides run in every round.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import models
import speed
import torch
from torch import nn

from ao_quant import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

PEER = models.ROOT / ".nox" / "peer" / "bin" / "python"
INT4 = Int4WeightOnlyConfig(group_size=128)
INT8 = Int8WeightOnlyConfig()
FORMATS: dict[str, Any] = {
    "bf16": None,
    "int8 weight-only": INT8,
    "int8 dynamic": Int8DynamicActivationInt8WeightConfig(),
    "8da4w g32": Int8DynamicActivationInt4WeightConfig(group_size=32),
    "int4 g128": INT4,
    "int4 g128, int8 embedding": FqnToConfig(
        {
            "model.embed_tokens": INT8,
            "lm_head": INT8,
            r"re:model\.layers\..*_proj": INT4,
        }
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["smollm2", "llama-1b"], default="smollm2")
    parser.add_argument("--only", nargs="+", choices=list(FORMATS), help="formats beside bf16")
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    names = ["bf16", *(n for n in arguments.only or FORMATS if n != "bf16")]
    made = formats(arguments.model, names)

    figures = {
        "decode": sides(speed.decode, made, tokens=arguments.tokens, context=arguments.context),
        "compiled": {} if arguments.no_compile else compiled(made, arguments),
        "prefill": sides(speed.prefill, made),
    }
    if arguments.model == "smollm2" and PEER.exists():
        figures["decode"]["llama.cpp"] = partial(peer, "decode", arguments.context)
        figures["prefill"]["llama.cpp"] = partial(peer, "prefill", arguments.context)
    found = {
        figure: measure.alternate(each, arguments.rounds)
        for figure, each in figures.items()
        if each
    }
    rows = [
        {"format": name, **{figure: each[name] for figure, each in found.items() if name in each}}
        for name in figures["decode"]
    ]
    settings = {**vars(arguments), "threads": torch.get_num_threads()}
    print(measure.table([shown(row, found) for row in rows]))
    print(f"tokens a second, {settings}")
    print(f"recorded in {measure.record('decode', rows, **settings)}")


def formats(name: str, names: list[str]) -> dict[str, nn.Module]:
    """One model a format; parameters that a format leaves alone are shared with bf16."""
    float_model = models.load(models.smollm2()) if name == "smollm2" else models.llama(name)
    made = {"bf16": float_model}
    for each in names[1:]:
        shared = {id(p): p for p in float_model.parameters()}
        made[each] = copy.deepcopy(float_model, shared)
        quantize_(made[each], FORMATS[each])
    return made


def sides(
    function: Callable[..., float], made: dict[str, nn.Module], **settings: int
) -> dict[str, Callable[[], float]]:
    return {name: partial(function, model, **settings) for name, model in made.items()}


def compiled(made: dict[str, nn.Module], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles every side, and says how far its tokens agree with plain generate."""
    torch._dynamo.config.recompile_limit = 2 * len(made)  # all sides share one code object
    found = {}
    for name, model in made.items():
        side = speed.CompiledDecode(model, tokens=arguments.tokens, context=arguments.context)
        took = measure.seconds(side.generate)
        plain = speed.greedy(model, tokens=arguments.tokens, context=arguments.context)
        agree = int((side.generate()[0] == plain).int().cumprod(-1).sum())
        print(f"{name}: compiled in {took:.0f} s, first {agree} tokens as in eager", flush=True)
        found[name] = side.rate
    return found


def peer(figure: str, context: int) -> float:
    """llama.cpp, in its own environment and process, with the threads that torch has here, which
    no setting of this process's OpenMP binds to cores."""
    program = str(Path(__file__).with_name("llama_cpp.py"))
    threads = str(torch.get_num_threads())
    options = ["--threads", threads, "--context", str(context), "--rounds", "1"]
    command = [str(PEER), program, *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])[figure]


def shown(row: dict[str, Any], found: dict[str, dict[str, measure.Spread]]) -> dict[str, str]:
    cells = {"format": row["format"]}
    for figure, each in found.items():
        if row["format"] in each:
            own = each[row["format"]]
            cells[figure] = f"{own:.1f}"
            cells[f"{figure} x bf16"] = f"{own.median / each['bf16'].median:.2f}"
        else:
            cells[figure] = cells[f"{figure} x bf16"] = "-"
    return cells


if __name__ == "__main__":
    main()
