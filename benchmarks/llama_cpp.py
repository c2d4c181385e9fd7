"""The peer: llama.cpp on the same model (GGUF Q4_1), through the prebuilt wheel xllamacpp.

    python3 -m nox -s peer

Runs in an environment of its own. Prints one JSON line: medians of tokens a second for decoding
behind --context tokens, and for a prompt of 512. decode.py runs this file once in every round
when the environment exists.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from typing import Any

import models
import xllamacpp

VOCABULARY = 49152


def prompt(length: int) -> list[int]:
    """The same ids as speed.prompt."""
    return [i * 7919 % (VOCABULARY - 100) + 50 for i in range(length)]


def serve(threads: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(models.smollm2_gguf())
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.verbosity = -1
    return xllamacpp.Server(params)


def timings(server: Any, length: int, tokens: int) -> dict[str, float]:
    request = {
        "prompt": prompt(length),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    return server.handle_completions(request)["timings"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    server = serve(arguments.threads)
    timings(server, 32, 8)
    decode, prefill = [], []
    for _ in range(arguments.rounds):
        decode.append(timings(server, arguments.context, 48)["predicted_per_second"])
        prefill.append(timings(server, 512, 1)["prompt_per_second"])
    found = {
        "decode": statistics.median(decode),
        "prefill": statistics.median(prefill),
        "threads": arguments.threads,
        "xllamacpp": xllamacpp.__version__,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
