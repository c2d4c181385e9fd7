"""The ranges of activations that static formats need: recorded from data, carried by configs.

    with observe_activations(model) as ranges:
        for batch in batches:
            model(batch)
    quantize_(model, with_activation_ranges(Int8StaticActivationInt8WeightConfig(), ranges))

docs/decisions/0011-static-activation-scales.md says why it is done so.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ao_core.config import AOBaseConfig
from ao_core.errors import ConfigError, ConversionError
from ao_core.match import FqnToConfig

from .weight import refuse

__all__ = ["observe_activations", "with_activation_ranges"]


@contextmanager
def observe_activations(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> Iterator[dict[str, float]]:
    """Record the largest magnitude that enters each linear while the model runs inside.

    model      any module, not compiled; it is not changed
    filter_fn  (module, name) -> bool: which modules to observe instead of every linear

    Gives a dictionary that is filled when the context ends: module name -> largest magnitude of its
    first argument over all calls.

    Raises ConversionError (a ValueError) then for modules that saw no floating tensor, nothing but
    zeros, or NaN or inf; and at once when there is nothing to observe.
    """
    chosen = filter_fn or (lambda module, fqn: isinstance(module, nn.Linear))
    modules = {fqn: module for fqn, module in model.named_modules() if chosen(module, fqn)}
    if not modules:
        what = "filter_fn accepted no module" if filter_fn else "the model has no Linear"
        raise ConversionError(f"nothing to observe: {what}")
    found: dict[str, Tensor] = {}
    ranges: dict[str, float] = {}

    def watch(fqn: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(iter((*args, *kwargs.values())), None)
            if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                amax = x.detach().abs().amax().float()  # read when all is done: no waiting
                found[fqn] = torch.maximum(found[fqn], amax) if fqn in found else amax

        return hook

    handles = [
        module.register_forward_pre_hook(watch(fqn), with_kwargs=True)
        for fqn, module in modules.items()
    ]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()
    seen = {fqn: amax.item() for fqn, amax in found.items()}
    bad = {fqn: "saw no floating tensor" for fqn in modules if fqn not in seen}
    bad |= {fqn: "saw only zeros" for fqn, amax in seen.items() if amax == 0}
    bad |= {fqn: "saw NaN or inf" for fqn, amax in seen.items() if not math.isfinite(amax)}
    if bad:
        lines = "".join(f"\n  {fqn}: {why}" for fqn, why in list(bad.items())[:20])
        more = f"\n  ... and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise ConversionError(
            f"{len(bad)} of {len(modules)} modules gave no activation range:{lines}{more}\n"
            "Run data that reaches them, or leave them out with filter_fn."
        )
    ranges.update(seen)


def with_activation_ranges(config: AOBaseConfig, ranges: Mapping[str, float]) -> FqnToConfig:
    """A static config for each module of `ranges`, with the range of its activations.

    config  a config that has an `activation_range`, such as Int8StaticActivationInt8WeightConfig()
    ranges  module or parameter name -> largest magnitude of its activations

    Rules for other modules can be joined: `FqnToConfig({**dict(rules), "lm_head": other})`.
    """
    if not hasattr(config, "activation_range"):
        raise ConfigError(
            f"{type(config).__name__} has no activation_range; "
            "with_activation_ranges takes a static config"
        )
    if not ranges:
        raise ConfigError("with_activation_ranges: there are no ranges; has the context ended?")
    changed: Callable[..., AOBaseConfig] = replace
    return FqnToConfig(
        tuple((fqn, changed(config, activation_range=float(r))) for fqn, r in ranges.items())
    )


def check_activation_range(config: str, value: float | None) -> None:
    """ConfigError unless a range is positive and finite, or not known yet."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= torch.finfo(torch.float32).max:
        raise ConfigError(f"{config}: activation_range is a positive number, got {value!r}")


def refuse_without_range(
    module: nn.Module, name: str, w: Tensor, config: AOBaseConfig
) -> str | None:
    """Why a parameter cannot become a weight with static activations, or None."""
    if getattr(config, "activation_range", None) is None:
        return (
            "has no activation range: record ranges with observe_activations and put them into "
            "the config by with_activation_ranges, or give activation_range"
        )
    return refuse(module, name, w, config)
