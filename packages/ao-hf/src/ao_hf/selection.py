"""Which parameters of a Transformers model are converted, decided before any weight is read.

The rules are those of ao_core.match; "_default" is widened to what a Transformers model has besides
nn.Linear (Conv1D, fused experts, embeddings on request) and narrowed by what is better left alone.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from ao_core.config import AOBaseConfig
from ao_core.errors import ConversionError
from ao_core.match import FqnToConfig, Target, match
from ao_core.transform import get_handler

from .config import AoConfig

__all__ = ["Selection", "is_experts", "is_transposed", "raise_together", "select", "tied_groups"]

# Experts (E, K, N), input features first, whose class does not say so. The others carry the flag
# that Transformers' use_experts_implementation sets.
TRANSPOSED = ("Llama4TextExperts",)


@dataclass
class Selection:
    """What is converted, and what is not.

    chosen   what to convert, by full parameter name
    skipped  why a parameter that a rule reached, or that may be experts, stays in float
    """

    chosen: dict[str, Target] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def is_experts(module: nn.Module) -> bool:
    """True for a module that holds a fused mixture of experts: parameters (E, N, K) of its own."""
    known = hasattr(module, "is_transposed") or "Experts" in type(module).__name__
    return known and any(_is_stack(p) for p in module._parameters.values())


def is_transposed(module: nn.Module, w: Tensor) -> bool:
    """True if a module stores the weight `w` as (..., K, N): input features first."""
    if w.dim() == 3:
        return bool(getattr(module, "is_transposed", type(module).__name__ in TRANSPOSED))
    return isinstance(module, Conv1D)


def select(model: PreTrainedModel, config: AoConfig) -> Selection:
    """What `config` converts in a model, which may be on the meta device.

    ConversionError when a rule or an entry of modules_to_not_convert matches nothing, when nothing
    is left to convert, or when a chosen parameter cannot be converted.
    """
    kept = config.modules_to_not_convert or []
    _check_kept(model, kept)
    embeddings, tied = _embeddings(model), tied_groups(model)
    experts = {type(module) for module in model.modules() if is_experts(module)}
    holders = {type(model.get_submodule(_path(name))) for name in embeddings}

    def default_modules(c: AOBaseConfig) -> tuple[type[nn.Module], ...]:
        return (*get_handler(c).modules, Conv1D, *experts, *holders)

    rules = config.quant_type
    if not isinstance(rules, FqnToConfig):
        rules = FqnToConfig((("_default", rules),))
    selection = Selection()
    for target in match(model, rules, filter_fn=None, default_modules=default_modules):
        default, name = target.rule == "_default", target.fqn
        if default and isinstance(target.module, nn.Embedding) and name not in embeddings:
            continue
        if target.config is None:
            selection.skipped[name] = f"the rule {target.rule!r} says None"
        elif not all(should_convert_module(n, kept) for n in (name, _path(name))):
            selection.skipped[name] = "modules_to_not_convert names it"
        elif default and name in embeddings and not config.include_embedding:
            selection.skipped[name] = "an embedding; include_embedding=True converts it"
        elif default and name in tied and name not in embeddings:
            selection.skipped[name] = "is tied; rules that name all its places convert it"
        else:
            selection.chosen[name] = target
    _skip_half_ties(selection, tied)
    _refuse(selection)
    if not selection.chosen:
        reasons = "".join(f"\n  {name}: {why}" for name, why in list(selection.skipped.items())[:8])
        raise ConversionError(f"nothing to convert in {type(model).__name__}{reasons}")
    _note_other_stacks(model, selection)
    return selection


def tied_groups(model: PreTrainedModel) -> dict[str, list[str]]:
    """Each tied parameter's name -> all names of its group."""
    groups: dict[str, list[str]] = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        group = groups.setdefault(source, [source])
        group.append(target)
        groups[target] = group
    return groups


def raise_together(errors: dict[str, str]) -> None:
    """One ConversionError for all parameters that cannot be converted, if there are any."""
    if errors:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in list(errors.items())[:20])
        more = f"\n  ... and {len(errors) - 20} more" if len(errors) > 20 else ""
        raise ConversionError(
            f"{len(errors)} parameters cannot be converted:{lines}{more}\n"
            "modules_to_not_convert, or a None rule, leaves them in float."
        )


def _check_kept(model: nn.Module, patterns: list[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    names += [name for name, _ in model.named_parameters(remove_duplicate=False)]
    unused = [p for p in patterns if all(should_convert_module(name, [p]) for name in names)]
    if unused:
        raise ConversionError(
            f"modules_to_not_convert: {', '.join(map(repr, unused))} matches nothing in "
            f"{type(model).__name__}, whose modules are {', '.join(names[:8])}, ..."
        )


def _embeddings(model: PreTrainedModel) -> set[str]:
    """The weights of the input and output embeddings, and what is tied to them."""
    modules = []
    for get in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            modules.append(get())
        except (AttributeError, NotImplementedError):  # a model without them
            continue
    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if any(module is m for m in modules) and "weight" in module._parameters
    }
    groups = tied_groups(model)
    return names.union(*(groups.get(name, ()) for name in names))


def _skip_half_ties(selection: Selection, tied: dict[str, list[str]]) -> None:
    """A tied weight is converted in all its places, alike, or in none."""
    for name, target in list(selection.chosen.items()):
        places = tied.get(name, [name])
        missing = [place for place in places if place not in selection.chosen]
        configs = {selection.chosen[place].config for place in places if place not in missing}
        if missing:
            others = ", ".join(place for place in places if place != name)
            reason = f"is tied to {others}; name all places in the rules, or none"
        elif len(configs) > 1:
            reason = "is tied, and its places ask for different configs"
        else:
            continue
        if target.exact or not missing:
            raise ConversionError(f"{name}: {reason}")
        selection.skipped[name] = reason
    for name in selection.skipped:
        selection.chosen.pop(name, None)


def _refuse(selection: Selection) -> None:
    """ConversionError for what cannot be converted, as far as shapes and dtypes tell."""
    errors = {}
    for name, target in selection.chosen.items():
        w, config = target.parameter, target.config
        assert config is not None
        if not w.is_floating_point():
            errors[name] = f"has dtype {w.dtype}; only floating-point weights can be converted"
        elif not w.numel():
            errors[name] = f"has shape {tuple(w.shape)}: there is nothing to convert"
        elif reason := get_handler(config).refuse(target.module, target.name, w, config):
            errors[name] = reason
    raise_together(errors)


def _note_other_stacks(model: nn.Module, selection: Selection) -> None:
    """Report three-dimensional parameters that no rule reached: they may be experts."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, p in module._parameters.items():
            fqn = f"{path}.{name}" if path else name
            if _is_stack(p) and fqn not in selection.chosen:
                what = f"three-dimensional in a {type(module).__name__}"
                why = f"{what}; name it in FqnToConfig if it holds experts"
                selection.skipped.setdefault(fqn, why)


def _is_stack(p: Tensor | None) -> bool:
    return p is not None and p.dim() == 3 and p.is_floating_point() and min(p.shape) > 1


def _path(name: str) -> str:
    return name.rpartition(".")[0]
