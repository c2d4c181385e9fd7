"""Tokens a second and peak memory of a Llama on a GPU: each format against bfloat16, and torchao.

    python benchmarks/decode_cuda.py                            the 8B shape, all formats of ours
    python benchmarks/decode_cuda.py --compile layers --batches 1 --only "int4 g128"
    python benchmarks/decode_cuda.py --torchao --bits 2 3 5     torchao's formats, and intx
    python benchmarks/decode_cuda.py --device cpu --shape tiny  the same without a GPU, to try it

Random weights, made and quantized on the GPU. Decoding is `speed.StaticDecode`: one step with a
static cache in a CUDA graph, for every side; --compile compiles it first, also for every side.
Prefill is eager, logits of the last token only. A format is timed in turn with bfloat16, round by
round, so each of its rows holds both. Before that its logits are compared with those of the same
model with dequantized weights, or, where a library cannot dequantize, of the bfloat16 model.

Memory is what the weights hold plus what PyTorch's allocator handed out at most beyond that, with
the cache, while the prompt was read and the steps ran.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import llama_sides
import measure
import models
import speed
import torch
from llama_sides import Side
from torch import nn
from torch._inductor import config as inductor_config

PROBE = 64  # tokens whose logits are compared


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(models.SHAPES), default="llama-3-8b")
    parser.add_argument("--layers", type=int, help="instead of those of the shape")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", help="formats of ours beside bf16")
    parser.add_argument("--bits", nargs="*", type=int, default=[], help="intx weight-only as well")
    parser.add_argument("--torchao", action="store_true", help="torchao's formats as well")
    parser.add_argument("--compile", choices=["none", "layers", "step"], default="none")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--prefill", type=int, default=4096, help="tokens; 0 for none")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device; --device cpu tries it out")
    sides = llama_sides.ours(arguments.only, arguments.bits)
    if arguments.torchao:
        sides += llama_sides.torchao()
    bench, failed = Benchmark(arguments), []
    for side in sides:
        try:
            bench.run(side)
        except Exception:  # the others are still worth their time; the exit status tells
            traceback.print_exc()
            print(f"{side.name}: failed, see above", flush=True)
            failed.append(side.name)
    bench.conclude()
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


class Benchmark:
    """The bfloat16 model, ready to decode with every batch, and the rows found so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.rows, self.start = arguments, list[dict[str, Any]](), time.time()
        self.gpu = arguments.device == "cuda"
        layers, device = arguments.layers, arguments.device
        self.model = models.llama(arguments.shape, layers=layers, device=device)
        self.weights_gb = models.held_bytes(self.model) / 1e9
        count = sum(p.numel() for p in self.model.parameters())
        self.say(f"{arguments.shape}: {count / 1e9:.3f}e9 parameters, {self.weights_gb:.2f} GB")
        self.figures, self.peaks = self.prepare(self.model, "bf16", {})

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.start:5.0f} s] {text}", flush=True)

    def prepare(
        self, model: nn.Module, name: str, inductor: dict[str, Any]
    ) -> tuple[dict[str, Callable[[], float]], dict[str, float | None]]:
        """By figure, the call that gives tokens a second; peak GB of its first call."""
        given, figures, peaks = self.arguments, {}, {}
        for batch in given.batches:
            figure, before = f"decode {batch}", self.held()
            begin = time.time()
            with inductor_config.patch(inductor):
                decode = speed.StaticDecode(
                    model,
                    batch=batch,
                    tokens=given.tokens,
                    context=given.context,
                    compiled=given.compile,
                )
                decode.rate()
            peaks[figure], figures[figure] = self.peak(model, before), decode.rate
            ready = f"{name}: {figure} ready in {time.time() - begin:.1f} s"
            if self.gpu or given.compile != "none":
                tokens = min(16, given.tokens)
                same = decode.generate(tokens) == decode.generate(tokens, eager=True)
                agree = int(same.all(0).int().cumprod(0).sum())
                ready += f", first {agree} of {tokens} tokens as in eager"
            self.say(ready)
        if given.prefill:
            figure, before = f"prefill {given.prefill}", self.held()
            figures[figure] = partial(speed.prefill, model, tokens=given.prefill)
            figures[figure]()
            peaks[figure] = self.peak(model, before)
        return figures, peaks

    def held(self) -> int:
        """Bytes that the allocator has handed out; its peak starts anew."""
        if not self.gpu:
            return 0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self, model: nn.Module, before: int) -> float | None:
        """GB, what is held beside this model not counted; None on a CPU."""
        if not self.gpu:
            return None
        beyond = torch.cuda.max_memory_allocated() - before
        return (models.held_bytes(model) + beyond) / 1e9

    def run(self, side: Side) -> None:
        """Quantizes, checks, measures, records; what it made is gone afterwards."""
        shared = {id(p): p for p in self.model.parameters()}
        model = copy.deepcopy(self.model, shared)
        self.held()
        begin = time.time()
        inductor = side.quantize(model)
        if self.gpu:
            torch.cuda.synchronize()
        took, weights_gb = time.time() - begin, models.held_bytes(model) / 1e9
        ratio = weights_gb / self.weights_gb
        self.say(f"{side.name}: quantized in {took:.1f} s, {weights_gb:.2f} GB, {ratio:.3f} x bf16")
        error, against = self.check(side, model)
        self.say(f"{side.name}: logits differ by {error:.3f} from {against}")

        figures, peaks = self.prepare(model, side.name, inductor)
        rows = []
        for figure, rate in figures.items():
            sides = {"bf16": self.figures[figure], side.name: rate}
            found = measure.alternate(sides, self.arguments.rounds)
            row = {
                "format": side.name,
                "library": side.library,
                "figure": figure,
                "tokens_per_s": found[side.name],
                "bf16_tokens_per_s": found["bf16"],
                "peak_gb": peaks[figure],
                "bf16_peak_gb": self.peaks[figure],
                "weights_gb": weights_gb,
                "bf16_weights_gb": self.weights_gb,
                "quantize_s": took,
                "error": error,
                "error_against": against,
            }
            self.say(f"{side.name}: {figure}: {sentence(row)}")
            rows.append(row)
        self.record(rows)

    def check(self, side: Side, model: nn.Module) -> tuple[float, str]:
        """The relative error of logits, and what they were compared with; raises if it is large."""
        expected, against = dequantized(model, self.model), "dequantized weights"
        if expected is None:
            expected, against = self.model, "bf16"
        limit = 0.2 if against == "dequantized weights" else 0.5
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            ids = speed.prompt(model, PROBE)
            wanted = expected(ids, use_cache=False).logits.float()
            error = float((model(ids, use_cache=False).logits - wanted).norm() / wanted.norm())
        if not error < limit:
            raise AssertionError(f"{side.name}: logits differ by {error:.3g} from {against}")
        return error, against

    def record(self, rows: list[dict[str, Any]]) -> None:
        settings = dict(vars(self.arguments))
        device = settings.pop("device")
        path = measure.record("decode_cuda", rows, device=device, **settings)
        self.rows += rows
        self.say(f"recorded in {path}")

    def conclude(self) -> None:
        table = {}
        for row in self.rows:
            cells = table.setdefault(row["format"], {"format": row["format"]})
            cells["weights GB"] = f"{row['weights_gb']:.2f}"
            if row["figure"] == f"decode {self.arguments.batches[0]}":
                cells["peak x bf16"] = memory_ratio(row)
            cells[row["figure"]] = f"{row['tokens_per_s'].median:.0f}"
            ratio = row["tokens_per_s"].median / row["bf16_tokens_per_s"].median
            cells[f"{row['figure']} x bf16"] = f"{ratio:.2f}"
        if table:
            print(measure.table(list(table.values())))
        compiled = self.arguments.compile
        print(f"tokens a second, --compile {compiled}, {time.time() - self.start:.0f} s in all")


def dequantized(model: nn.Module, float_model: nn.Module) -> nn.Module | None:
    """`model` with plain weights of the same values; None where its library has no way to them."""
    memo: dict[int, Any] = {id(p): p for p in float_model.parameters()}
    for parameter in model.parameters():
        if hasattr(parameter, "__tensor_flatten__"):
            try:
                plain = parameter.dequantize()
            except NotImplementedError:
                return None
            memo[id(parameter)] = nn.Parameter(plain, requires_grad=False)
    return copy.deepcopy(model, memo)


def sentence(row: dict[str, Any]) -> str:
    own, base = row["tokens_per_s"], row["bf16_tokens_per_s"]
    speeds = f"{own:.1f} tokens/s, {own.median / base.median:.2f} x bf16 ({base:.1f})"
    if row["peak_gb"] is None:
        return speeds
    return f"{speeds}; peak {row['peak_gb']:.2f} GB, {memory_ratio(row)} x bf16"


def memory_ratio(row: dict[str, Any]) -> str:
    return "-" if row["peak_gb"] is None else f"{row['peak_gb'] / row['bf16_peak_gb']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
