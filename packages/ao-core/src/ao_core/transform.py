"""The one engine under quantize_ and its kin: match, check, convert, swap, report.

A package registers for each of its configs how one parameter is converted:

    @register_handler(Int4WeightOnlyConfig, modules=(nn.Linear,))
    def _int4(w: Tensor, config: Int4WeightOnlyConfig) -> Tensor: ...

All checks run before anything is changed. When a conversion fails in the middle, every parameter
that was swapped is put back, so a model is converted as asked or not at all.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .config import AOBaseConfig
from .errors import ConversionError
from .match import Target, match
from .report import Report, Row
from .tensor import QTensor

__all__ = ["Handler", "convert_", "get_handler", "is_finite", "register_handler"]

Convert = Callable[[Tensor, Any], Tensor]
Refuse = Callable[[nn.Module, str, Tensor, Any], str | None]


@dataclass(frozen=True)
class Handler:
    """How a config converts a parameter.

    convert  convert(weight, config) gives the new weight
    refuse   refuse(module, name, weight, config) gives the reason why it cannot, or None
    modules  what is converted when no rule names anything
    """

    convert: Convert
    refuse: Refuse
    modules: tuple[type[nn.Module], ...]


_HANDLERS: dict[type[AOBaseConfig], Handler] = {}


def register_handler(
    config_type: type[AOBaseConfig],
    *,
    modules: tuple[type[nn.Module], ...] = (nn.Linear,),
    refuse: Refuse = lambda module, name, weight, config: None,
) -> Callable[[Convert], Convert]:
    """Decorator: `fn(weight, config) -> converted` is how `config_type` converts a parameter."""

    def register(fn: Convert) -> Convert:
        if config_type in _HANDLERS:
            raise TypeError(f"register_handler: {config_type.__name__} has a handler already")
        _HANDLERS[config_type] = Handler(fn, refuse, modules)
        return fn

    return register


def get_handler(config: AOBaseConfig) -> Handler:
    """The handler of a config's exact type; TypeError when none is registered."""
    handler = _HANDLERS.get(type(config))
    if handler is None:
        known = (
            ", ".join(sorted(t.__name__ for t in _HANDLERS))
            or "none: import the package that defines it"
        )
        raise TypeError(
            f"nothing knows how to apply {type(config).__name__}; known configs: {known}"
        )
    return handler


def convert_(
    model: nn.Module,
    config: AOBaseConfig,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    *,
    strict: bool = True,
    tied: str = "keep",
    on_nonfinite: str = "raise",
    progress: bool | None = None,
) -> Report:
    """Convert a model's parameters in place; see `ao_quant.quantize_` for the arguments and what is
    raised."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, AOBaseConfig):
        raise TypeError(f"expected a config such as Int4WeightOnlyConfig(), got {config!r}")
    _one_of("tied", tied, ("keep", "untie"))
    _one_of("on_nonfinite", on_nonfinite, ("raise", "keep"))
    targets = match(
        model, config, filter_fn=filter_fn, default_modules=lambda c: get_handler(c).modules
    )
    reasons = _reasons(model, targets, tied=tied, on_nonfinite=on_nonfinite)
    errors = [(t, r) for t, (r, fatal) in reasons.items() if fatal]
    if errors and strict:
        lines = "\n".join(f"  {t.fqn}: {reason}" for t, reason in errors[:20])
        more = f"\n  ... and {len(errors) - 20} more" if len(errors) > 20 else ""
        raise ConversionError(
            f"{len(errors)} of {len(targets)} parameters cannot be converted "
            f"(nothing was changed):\n{lines}{more}\n"
            "Exclude them with filter_fn or a None rule, "
            "or pass strict=False to leave them as they are.",
            _report(model, targets, {t: r for t, (r, _) in reasons.items()}, {}),
        )
    todo = [t for t in targets if t not in reasons]
    old = _swap(todo, progress)
    return _report(model, targets, {t: r for t, (r, _) in reasons.items()}, old)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {' or '.join(map(repr, allowed))}, got {value!r}")


# --- checks


def _reasons(
    model: nn.Module, targets: list[Target], *, tied: str, on_nonfinite: str
) -> dict[Target, tuple[str, bool]]:
    """Why targets are left alone, and whether that is an error."""
    reasons: dict[Target, tuple[str, bool]] = {}
    finite: dict[int, bool] = {}
    for target in targets:
        parameter = target.parameter
        if target.config is None:
            reasons[target] = (f"the rule {target.rule!r} says None", False)
        elif reason := _refusal(target):
            reasons[target] = (reason, True)
        elif not finite.setdefault(id(parameter), is_finite(parameter)):
            kept = on_nonfinite == "keep"
            hint = "kept as it is" if kept else 'on_nonfinite="keep" leaves such layers as they are'
            reasons[target] = (f"the weight contains NaN or inf; {hint}", not kept)
    if tied == "keep":
        _refuse_half_ties(model, targets, reasons)
    return reasons


def _refusal(target: Target) -> str | None:
    w = target.parameter
    if isinstance(w, QTensor):
        name = type(w).__name__
        return f"is quantized already ({name}); load the float weights, or update_() this one"
    if w.layout != torch.strided:
        return f"is a sparse tensor ({w.layout}); only dense weights can be converted"
    if not w.is_floating_point():
        return f"has dtype {w.dtype}; only floating-point weights can be converted"
    if w.device.type == "meta":
        return "is on the meta device and has no values; load the weights first"
    if w.dim() == 0 or w.numel() == 0:
        return f"has shape {tuple(w.shape)}: there is nothing to convert"
    return get_handler(target.config).refuse(target.module, target.name, w, target.config)  # type: ignore[arg-type]


def is_finite(w: Tensor) -> bool:
    """Whether a weight has neither NaN nor inf."""
    low, high = torch.aminmax(w.detach())  # one pass without a mask; NaN and inf survive it
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _refuse_half_ties(
    model: nn.Module, targets: list[Target], reasons: dict[Target, tuple[str, bool]]
) -> None:
    """A tied weight is converted in all its places or in none."""
    places: dict[int, list[str]] = {}
    for module_fqn, module in model.named_modules():  # a shared module is one place
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append(
                f"{module_fqn}.{name}" if module_fqn else name
            )
    reached: dict[int, list[Target]] = {}
    for target in targets:
        reached.setdefault(id(target.parameter), []).append(target)
    for key, group in reached.items():
        if len(places.get(key, ())) < 2:
            continue
        live = [t for t in group if t not in reasons]
        missing = sorted(set(places[key]) - {t.fqn for t in live})
        configs = {t.config for t in live}
        for target in live:
            if missing:
                others = ", ".join(missing)
                how = 'name both in the rules to convert both, or pass tied="untie"'
                reasons[target] = (
                    f"is tied to {others}, which is not converted; {how}",
                    target.exact,
                )
            elif len(configs) > 1:
                reasons[target] = ("is tied, and its places ask for different configs", True)


# --- the swap


def _swap(targets: list[Target], progress: bool | None) -> dict[Target, nn.Parameter]:
    """Replace each target's parameter; the old ones are returned, or put back if anything fails."""
    old: dict[Target, nn.Parameter] = {}
    new: dict[tuple[int, AOBaseConfig | None], nn.Parameter] = {}
    try:
        for target in _bar(targets, progress):
            parameter = target.parameter
            key, config = (id(parameter), target.config), target.config
            assert config is not None, "rules that say None are no work"
            if key not in new:
                with torch.no_grad():
                    converted = get_handler(config).convert(parameter.detach(), config)
                new[key] = nn.Parameter(converted, requires_grad=False)
            old[target] = parameter
            target.module._parameters[target.name] = new[key]
    except BaseException as error:
        for target_done, parameter in old.items():
            target_done.module._parameters[target_done.name] = parameter
        if isinstance(error, Exception):
            raise ConversionError(f"{target.fqn}: {error} (the model is unchanged)") from error
        raise
    return old


def _bar(items: list[Target], progress: bool | None) -> Iterable[Target]:
    """A progress bar when asked for, or on a terminal when tqdm is there and the work is long."""
    if progress is False or (progress is None and not (sys.stderr.isatty() and len(items) > 1)):
        return items
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as error:
        if progress:
            raise ImportError("progress=True needs tqdm: pip install tqdm") from error
        return items
    return tqdm(items, desc="converting", unit="weight", delay=2 if progress is None else 0)


def _report(
    model: nn.Module,
    targets: list[Target],
    reasons: dict[Target, str],
    old: dict[Target, nn.Parameter],
) -> Report:
    rows, counted = [], set()
    for target in targets:
        before = old.get(target, target.parameter)
        first = id(before) not in counted
        counted.add(id(before))
        if target in reasons:
            status, what, after = "skipped", reasons[target], before
        else:
            status, what, after = (
                "converted" if first else "tied",
                _describe(target.parameter),
                target.parameter,
            )
        sizes = (_bytes(before), _bytes(after)) if first else (0, 0)
        shape = tuple(before.shape)
        rows.append(
            Row(
                fqn=target.fqn,
                status=status,
                what=what,
                shape=shape,
                bytes_before=sizes[0],
                bytes_after=sizes[1],
            )
        )
    reached = {id(t.parameter) for t in targets} | counted
    rest = [*model.parameters(), *model.buffers()]
    return Report(rows=rows, untouched_bytes=sum(_bytes(t) for t in rest if id(t) not in reached))


def _bytes(t: Tensor) -> int:
    return t.nbytes if t.layout == torch.strided else t.numel() * t.element_size()


def _describe(w: Tensor) -> str:
    return getattr(w, "describe", lambda: type(w).__name__)()
