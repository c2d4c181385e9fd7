"""Tokens a second of a causal language model: generate, prefill, decoding with a static cache.

A side of `measure.alternate` is one of these functions with its model bound.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable
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


def prompt(model: nn.Module, length: int, batch: int = 1) -> Tensor:
    """(batch, length) token ids, always the same; no two rows alike."""
    ids = torch.arange(batch * length, device=model.device)
    return (ids * 7919 % (model.config.vocab_size - 100) + 50).view(batch, length)


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
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        _wait(model)
        start = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1)
        _wait(model)
        return tokens / (time.perf_counter() - start)


def _wait(model: nn.Module) -> None:
    """Until a GPU that holds the model has nothing left to do."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


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


class StaticDecode:
    """Greedy decoding of a batch with a static cache; on a GPU, one step is a CUDA graph.

    The step reads and writes tensors that stay where they are: token, position, cache. Its mask is
    made from the position on the device, as a finished one of four dimensions, so that Transformers
    asks nothing of the host, and the position and the cache's own count go on with every replay.
    `compiled` is "step" (torch.compile of the whole step), "layers" (of each decoder layer: half
    the time to compile) or "none". What feeds the prompt is never compiled. Tokens are not copied
    to the host.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch: int = 1,
        tokens: int = 64,
        context: int = 128,
        compiled: str = "none",
    ) -> None:
        from transformers import StaticCache

        self.model, self.batch, self.tokens, self.context = model, batch, tokens, context
        # Attention kernels want masks whose rows are aligned.
        self.columns = torch.arange(-(-(context + tokens) // 64) * 64, device=model.device)
        self.cache = StaticCache(config=model.config, max_cache_len=len(self.columns))
        self.position = torch.full((1, 1), context, device=model.device)
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            ids = prompt(model, context, batch)
            logits = model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            self.first = logits[:, -1].argmax(-1, keepdim=True)
        self.token = self.first.clone()
        self.step = self._compile(compiled)
        if model.device.type == "cuda":
            self.step = self._capture()

    def _compile(self, compiled: str) -> Callable[[], object]:
        torch._dynamo.config.recompile_limit = 1000  # of one code object: layers, batches, formats
        torch._dynamo.config.accumulated_recompile_limit = 10000
        if compiled == "layers":
            for layer in self.model.model.layers:
                layer.compile(fullgraph=True, dynamic=False)
        elif compiled == "step":
            return torch.compile(self._step, fullgraph=True, dynamic=False)
        return self._step

    def _step(self) -> None:
        logits = self.model(
            self.token,
            attention_mask=(self.columns <= self.position)[None, None],
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.token.copy_(logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)

    def _capture(self) -> Callable[[], object]:
        step, graph, stream = self.step, torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            with torch.cuda.stream(stream):  # compiles, chooses algorithms, takes workspaces
                for _ in range(3):
                    self._rewind()
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                step()
        return graph.replay

    def _rewind(self) -> None:
        """To the end of the prompt."""
        self.token.copy_(self.first)
        self.position.fill_(self.context)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def generate(self, tokens: int, *, eager: bool = False) -> Tensor:
        """The (batch, tokens) ids that follow the prompt and its first token; `eager`: of the
        plain step."""
        found, step = [], self._step if eager else self.step
        stance = "force_eager" if eager else "default"
        with torch.inference_mode(), torch.compiler.set_stance(stance):
            self._rewind()
            for _ in range(tokens):
                step()
                found.append(self.token.clone())
        return torch.cat(found, 1)

    def rate(self) -> float:
        """Tokens a second of the whole batch, the first step left out."""
        with torch.inference_mode():
            self._rewind()
            self.step()
            _wait(self.model)
            start = time.perf_counter()
            for _ in range(self.tokens - 1):
                self.step()
            _wait(self.model)
            return self.batch * (self.tokens - 1) / (time.perf_counter() - start)
