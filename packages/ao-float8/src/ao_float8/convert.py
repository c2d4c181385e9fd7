"""convert_to_float8_training: which layers of a model are trained on codes, and which are not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ao_core.errors import ConversionError
from ao_core.report import Report, Row
from ao_core.tensor import QTensor

from . import profit
from .config import RECIPES, Float8LinearConfig
from .hardware import check_device
from .linear import Float8Linear

__all__ = ["convert_to_float8_training"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Filter = Callable[[nn.Module, str], bool]


def convert_to_float8_training(
    model: nn.Module,
    *,
    config: Float8LinearConfig | None = None,
    module_filter_fn: Filter | None = None,
    tokens: int = profit.TOKENS,
) -> Report:
    """Train the linear layers of a model on float8 codes: each becomes a `Float8Linear` in place.

    Parameters, hooks and names stay what they are, so optimizers that hold the parameters, and
    checkpoints, stay good (with `enable_fsdp_float8_all_gather`, weights become new parameters of
    the same memory, as they do again in `fully_shard`). Nothing is copied; a model on the meta
    device can be converted. Convert before `fully_shard`, `parallelize_module` and `torch.compile`.

    model             any module, also a single nn.Linear
    config            None: the recipe "tensorwise"
    module_filter_fn  module_filter_fn(module, name) says whether a linear layer is converted. None:
                      those are that become faster (`ao_float8.profit`; with `emulate`, all are)
    tokens            rows of activations that a layer sees in one forward pass on one GPU, for that
                      decision

    The report has a row for every linear layer: why it was left alone, or what it became.

    TypeError for what is no module or no config. ConversionError, and an unchanged model, when
    there is no linear layer, when the filter accepts none, and when it accepts one that cannot be
    converted. RuntimeError for a GPU that cannot multiply float8, unless the config emulates.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    config = Float8LinearConfig() if config is None else config
    if not isinstance(config, Float8LinearConfig):
        names = ", ".join(RECIPES)
        raise TypeError(
            f"expected a Float8LinearConfig, got {config!r}; recipes are made by "
            f"Float8LinearConfig.from_recipe_name(name) with one of {names}"
        )
    if tokens < 1:
        raise ValueError(f"tokens is at least 1, got {tokens}")
    layers = list(_layers(model))
    if not layers:
        raise ConversionError("nothing to convert: the model has no nn.Linear")
    skipped = _skipped(layers, config, module_filter_fn, tokens)
    chosen = {id(each.module) for each in layers} - skipped.keys()
    if not chosen and module_filter_fn is not None:
        raise ConversionError(
            "nothing to convert: module_filter_fn accepted none of the linear layers "
            f"{', '.join(each.fqn for each in layers[:8])}"
        )
    _swap([each for each in layers if id(each.module) in chosen and not each.again], config)
    return _report(model, layers, skipped)


@dataclass(frozen=True)
class _Layer:
    """A linear layer at one of its places; `again` at the second and later ones."""

    fqn: str
    module: nn.Linear
    again: bool


def _layers(model: nn.Module) -> Iterator[_Layer]:
    seen: set[int] = set()
    for fqn, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            yield _Layer(fqn, module, id(module) in seen)
            seen.add(id(module))


def _skipped(
    layers: list[_Layer], config: Float8LinearConfig, filter_fn: Filter | None, tokens: int
) -> dict[int, str]:
    """Why layers are left alone, by the id of the module; a shared one is converted where the
    filter accepts any of its places."""
    accepted = {
        id(each.module) for each in layers if filter_fn and filter_fn(each.module, each.fqn)
    }
    reasons: dict[int, str] = {}
    errors: list[str] = []
    for each in layers:
        key = id(each.module)
        if each.again:
            continue
        if filter_fn is not None and key not in accepted:
            reasons[key] = "module_filter_fn says no"
            continue
        reason = _refusal(each.module)
        if reason:
            reasons[key] = reason
            if filter_fn is not None or isinstance(each.module, Float8Linear):
                errors.append(f"  {each.fqn or 'the model'}: {reason}")
            continue
        check_device_of(each.module, config)
        if filter_fn is None and not config.emulate:
            N, K = each.module.weight.shape
            found = profit.judge(config, N, K, tokens=tokens, device=each.module.weight.device)
            if not found.wins:
                reasons[key] = f"stays as it is: {found}"
    if errors:
        raise ConversionError(
            f"{len(errors)} layers cannot be converted (nothing was changed):\n" + "\n".join(errors)
        )
    return reasons


def check_device_of(module: nn.Linear, config: Float8LinearConfig) -> None:
    """Refuses GPUs that cannot do it; a model on the CPU may still move, and is asked when it
    runs."""
    device = module.weight.device
    if device.type == "cuda":
        check_device(config.scaling, device, emulate=config.emulate)


def _refusal(module: nn.Linear) -> str | None:
    if isinstance(module, Float8Linear):
        return "is a Float8Linear already; change its config with layer.configure(config)"
    weight = module.weight
    if isinstance(weight, QTensor):
        return f"has a quantized weight ({type(weight).__name__}), which is not trained"
    if type(module) is not nn.Linear:
        kind = type(module).__name__
        if kind.startswith("FSDP"):
            return "is wrapped by fully_shard; convert the model before it is sharded"
        return f"is a {kind}, whose forward may do more than nn.Linear's"
    if weight.dtype not in DTYPES:
        names = ", ".join(map(str, DTYPES))
        return f"has a weight of {weight.dtype}; float8 training takes {names}"
    if not weight.numel():
        return f"has a weight of shape {tuple(weight.shape)}: there is nothing to multiply"
    if weight.layout != torch.strided:
        return f"has a sparse weight ({weight.layout})"
    return None


def _swap(layers: list[_Layer], config: Float8LinearConfig) -> None:
    """All of them or none."""
    done: list[nn.Linear] = []
    try:
        for each in layers:
            done.append(each.module)
            each.module.__class__ = Float8Linear
            Float8Linear.configure(each.module, config)  # type: ignore[arg-type]
    except BaseException:
        for module in done:
            module.__class__ = nn.Linear
            for name in ("config", "_plan", "_weight_codes"):
                module.__dict__.pop(name, None)
        raise


def _report(model: nn.Module, layers: list[_Layer], skipped: dict[int, str]) -> Report:
    rows, seen = [], set()
    for each in layers:
        weight, reason = each.module.weight, skipped.get(id(each.module))
        size = 0 if id(weight) in seen else weight.nbytes
        first = id(weight) not in seen
        seen.add(id(weight))
        if reason is None:
            assert isinstance(each.module, Float8Linear), "what was not skipped was swapped"
            what = f"Float8Linear, {each.module.config.scaling}"
            status = "converted" if first else "tied"
        else:
            status, what = "skipped", reason
        rows.append(
            Row(
                fqn=f"{each.fqn}.weight" if each.fqn else "weight",
                status=status,
                what=what,
                shape=tuple(weight.shape),
                bytes_before=size,
                bytes_after=size,
            )
        )
    rest = [*model.parameters(), *model.buffers()]
    return Report(rows=rows, untouched_bytes=sum(t.nbytes for t in rest if id(t) not in seen))
