"""Which parameter of a model gets which config.

`FqnToConfig` names them. Per parameter the first of these decides, and `None` means "leave it
alone":

    1. its exact name                 "model.layers.0.mlp.experts.down_proj"
    2. the exact name of its module   "model.layers.0.self_attn.q_proj"
    3. "re:" pattern on its name      "re:.*experts\\.(gate_up|down)_proj"      (re.fullmatch)
    4. "re:" pattern on its module    "re:.*\\.mlp\\..*"
    5. "_default"                     the modules that the handler converts by default (linears)

A module's name stands for its `weight`, or, where it has none, for its own three-dimensional
parameters (fused experts). Patterns look at parameters with two or more dimensions, so they may
cross norms and biases.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .config import AOBaseConfig, register_config
from .errors import ConfigError, ConversionError

__all__ = ["FqnToConfig", "Target", "match", "module_parameters"]

Rules = tuple[tuple[str, AOBaseConfig | None], ...]


@register_config
@dataclass(frozen=True)
class FqnToConfig(AOBaseConfig):
    """A config for each name or pattern.

        FqnToConfig({"lm_head": None, "_default": Int4WeightOnlyConfig()})

    Takes a mapping or pairs and keeps their order: among patterns the first that matches decides.
    """

    fqn_to_config: Rules = ()

    def __post_init__(self) -> None:
        given = self.fqn_to_config
        try:
            pairs = tuple(
                (key, value)
                for key, value in (given.items() if isinstance(given, Mapping) else given)
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"FqnToConfig takes a mapping from names to configs, got {given!r}"
            ) from error
        if not pairs:
            raise ConfigError(
                "FqnToConfig has no rules; give at least one name, pattern or '_default'"
            )
        for key, value in pairs:
            if not isinstance(key, str):
                raise ConfigError(f"FqnToConfig: names are strings, got {key!r}")
            if value is not None and (
                not isinstance(value, AOBaseConfig) or isinstance(value, FqnToConfig)
            ):
                raise ConfigError(
                    f"FqnToConfig: the rule {key!r} needs a config or None, got {value!r}"
                )
            if key.startswith("re:"):
                try:
                    re.compile(key[3:])
                except re.error as error:
                    raise ConfigError(
                        f"FqnToConfig: {key!r} is not a valid pattern: {error}"
                    ) from error
        if len({key for key, _ in pairs}) != len(pairs):
            raise ConfigError("FqnToConfig: a name occurs twice")
        object.__setattr__(self, "fqn_to_config", pairs)

    def __iter__(self) -> Iterator[tuple[str, AOBaseConfig | None]]:
        return iter(self.fqn_to_config)


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter that a rule reaches. `rule` is the rule's name; `exact` if it names this very
    place."""

    module: nn.Module
    name: str
    fqn: str
    config: AOBaseConfig | None
    rule: str
    exact: bool

    @property
    def parameter(self) -> nn.Parameter:
        return self.module._parameters[self.name]  # type: ignore[return-value]


def module_parameters(module: nn.Module) -> list[str]:
    """The parameters that a module's name stands for."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if "weight" in own:
        return ["weight"]
    return [
        name
        for name, p in own.items()
        if p.dim() == 3 and (p.is_floating_point() or p.is_complex())
    ]


def match(
    model: nn.Module,
    config: AOBaseConfig,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None,
    default_modules: Callable[[AOBaseConfig], tuple[type[nn.Module], ...]],
) -> list[Target]:
    """Every parameter that a rule reaches, in the model's order; ConversionError when a rule
    reaches nothing."""
    if isinstance(config, FqnToConfig):
        if filter_fn is not None:
            raise ConfigError(
                "give FqnToConfig or filter_fn, not both: "
                "FqnToConfig already names what it converts"
            )
        return _match_names(model, config, default_modules)
    kinds = default_modules(config)
    chosen = filter_fn or (lambda module, fqn: isinstance(module, kinds))
    targets = [
        Target(
            module, name, _join(fqn, name), config, "filter_fn" if filter_fn else "default", False
        )
        for fqn, module in model.named_modules()
        if chosen(module, fqn)
        for name in module_parameters(module)
    ]
    if not targets:
        what = (
            "filter_fn accepted no module with a weight"
            if filter_fn
            else f"the model has no {' or '.join(k.__name__ for k in kinds)}"
        )
        raise ConversionError(
            f"nothing to convert: {what}. The model's modules: "
            f"{_some(n for n, _ in model.named_modules())}"
        )
    return targets


def _match_names(
    model: nn.Module,
    config: FqnToConfig,
    default_modules: Callable[[AOBaseConfig], tuple[type[nn.Module], ...]],
) -> list[Target]:
    used: set[str] = set()
    targets = []
    for module_fqn, module in model.named_modules():
        ours = module_parameters(module)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            fqn, found = _join(module_fqn, name), []
            for key, value in config:
                rank = _rank(key, fqn, module_fqn if name in ours else None, parameter)
                if (
                    key == "_default"
                    and name in ours
                    and value is not None
                    and isinstance(module, default_modules(value))
                ):
                    rank = 5
                if rank:
                    used.add(key)
                    found.append((rank, key, value))
            if found:
                # The first of equals: min is stable.
                rank, key, value = min(found, key=lambda item: item[0])
                targets.append(Target(module, name, fqn, value, key, rank <= 2))
    unused = [
        key
        for key, value in config
        if key not in used and not (key == "_default" and value is None)
    ]
    if unused:
        names = [n for n, _ in model.named_modules()] + [
            n for n, _ in model.named_parameters(remove_duplicate=False)
        ]
        hints = [
            f"  {key!r}"
            + (
                f"; did you mean {near[0]!r}?"
                if (near := difflib.get_close_matches(key, names, 1))
                else ""
            )
            for key in unused
        ]
        raise ConversionError(
            "these rules match nothing in the model:\n"
            + "\n".join(hints)
            + f"\nThe model's modules: {_some(names)}"
        )
    return targets


def _rank(key: str, fqn: str, module_fqn: str | None, parameter: torch.Tensor) -> int:
    """How a rule reaches a parameter, 1 (strongest) to 4, or 0 when it does not."""
    if key.startswith("re:"):
        if parameter.dim() < 2:
            return 0
        if re.fullmatch(key[3:], fqn):
            return 3
        return 4 if module_fqn is not None and re.fullmatch(key[3:], module_fqn) else 0
    if key == fqn:
        return 1
    return 2 if module_fqn is not None and key == module_fqn else 0


def _join(module_fqn: str, name: str) -> str:
    return f"{module_fqn}.{name}" if module_fqn else name


def _some(names: Iterator[str] | list[str]) -> str:
    names = [name for name in names if name]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "(none)"
