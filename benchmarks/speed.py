"""Tokens a second of a causal language model: plain generate, prefill, compiled decoding.

A side of `measure.alternate` is one of these functions with its model bound.
"""

from __future__ import annotations

import time
import types
from typing import Any

import torch
from torch import Tensor, nn

CONTEXT = 32  # tokens in the cache before decoding is timed, unless told otherwise


class _Clock:
    """A streamer that only notes when each token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def prompt(model: nn.Module, length: int) -> Tensor:
    """(1, length) token ids, always the same."""
    ids = torch.arange(length) * 7919 % (model.config.vocab_size - 100) + 50
    return ids[None]


def decode(model: nn.Module, *, tokens: int = 48, context: int = CONTEXT) -> float:
    """Tokens a second of greedy decoding in plain `generate`, the first token left out."""
    clock = _Clock()
    ids = prompt(model, context)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
        streamer=clock,
    )
    return (tokens - 1) / (clock.times[-1] - clock.times[1])  # times[0] is the prompt's


def prefill(model: nn.Module, *, tokens: int = 512) -> float:
    """Prompt tokens a second, as generate feeds them: logits of the last token only."""
    ids = prompt(model, tokens)
    with torch.inference_mode():
        start = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        return tokens / (time.perf_counter() - start)


class CompiledDecode:
    """Greedy decoding with a static cache, one step compiled with fullgraph=True.

    Guards are checked while it warms up, then skipped, for every side: model and shapes do not
    change in the loop, and dynamo's checks of 272 parameters cost 2 ms a token here.
    """

    def __init__(self, model: nn.Module, *, tokens: int = 48, context: int = CONTEXT) -> None:
        from transformers import StaticCache

        self.model, self.tokens, self.context = model, tokens, context
        self.cache = StaticCache(config=model.config, max_cache_len=context + tokens)
        unguarded = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        # Dynamo keeps what it compiled by code object.
        code = CompiledDecode._step.__code__.replace()
        own = types.MethodType(types.FunctionType(code, globals()), self)
        self.step = torch.compile(own, fullgraph=True, options=unguarded)

    def _step(self, token: Tensor, position: Tensor) -> Tensor:
        logits = self.model(
            token,
            position_ids=position[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits.argmax(-1)

    def generate(self) -> tuple[Tensor, float]:
        """The (1, tokens) ids that follow the prompt; tokens a second after the first two."""
        positions = torch.arange(self.context + self.tokens)
        with torch.inference_mode():
            self.cache.reset()
            token = self._step(prompt(self.model, self.context), positions[: self.context])
            found, start = [token], 0.0
            for i in range(self.context, self.context + self.tokens - 1):
                token = self.step(token, positions[i : i + 1])
                found.append(token.clone())
                start = start or time.perf_counter()
        return torch.cat(found, 1), (self.tokens - 2) / (time.perf_counter() - start)

    def rate(self) -> float:
        return self.generate()[1]


def greedy(model: nn.Module, *, tokens: int = 48, context: int = CONTEXT) -> Tensor:
    """The (1, tokens) ids of plain `generate` on the same prompt, to compare with."""
    ids = prompt(model, context)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": tokens}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, **options)
    return out[:, context:]
