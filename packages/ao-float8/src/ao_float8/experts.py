"""Experts in float8: the parameters of a model whose grouped products run on codes.

E experts, N output features, K input features. FSDP2 and expert parallel shard such parameters as
they do others, and gather them in high precision (`grouped_products.py` casts what arrives): shards
are `Float8Experts` too, and so is what is gathered.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ao_core.errors import ConfigError, ConversionError, UnsupportedOpError
from ao_core.report import Report, Row

from .cast_cache import WeightCodes
from .config import Float8LinearConfig
from .grouped_products import float8_grouped_mm, grouped_mm_of
from .linear import plan_of
from .operands import Codes
from .wrapped import WrappedParameter, local_of, unwrapped, with_local

__all__ = ["Float8Experts", "convert_experts_to_float8_training", "float8_grouped_mm"]


class Float8Experts(WrappedParameter):
    """A parameter (E, N, K), or (E, K, N), or a shard of one, whose grouped products run in float8.

    `torch.nn.functional.grouped_mm(x, w.mT, offs=...)`, with or without `.mT`, calls
    `float8_grouped_mm`; everything else sees an ordinary tensor.

    gathered: by FSDP2, which frees the memory behind forward. Codes for backward would stay, of all
    experts on every rank: they are cast again instead.

    Views of a parameter share `codes`, which `weight_cache="step"` keeps until the parameter
    changes, and `root`, the memory of the first of them, whose version counts what is written: to
    the memory itself, as by what loads into a state dict, or through any of the views.
    """

    codes: WeightCodes
    root: Tensor

    def __init__(
        self,
        inner: Tensor,
        config: Float8LinearConfig,
        gathered: bool = False,
        base: "Float8Experts | None" = None,
    ) -> None:
        self.plain, self.config, self.gathered = inner, config, gathered
        self.codes = WeightCodes() if base is None else base.codes
        self.root = inner if base is None else base.root

    def _like(self, inner: Tensor, *, shares_memory: bool) -> "Float8Experts":
        if not shares_memory:
            return Float8Experts(inner, self.config)
        return Float8Experts(inner, self.config, self.gathered, self)

    def _written(self) -> None:
        if not self.root.is_inference():
            torch.autograd.graph.increment_version(self.root)

    def _kept(self, w_ENK: Tensor) -> Codes:
        """The codes of w, a view of this memory, in both directions."""
        return self.codes.cast(w_ENK, plan_of(self.config), source=self.root)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["plain"], (self.config, self.gathered)

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], plan: Any, outer_size: Any, outer_stride: Any
    ) -> "Float8Experts":
        return Float8Experts(inner["plain"], *plan)

    def __reduce_ex__(self, protocol: Any) -> Any:  # a pickled model trains in float8 still
        is_parameter = isinstance(self, nn.Parameter)
        return _wrapped, (self.plain, self.config, self.requires_grad, is_parameter)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _GROUPED:
            return _grouped(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _GROUPED:  # as of a DTensor, whose products would be in high precision
            raise UnsupportedOpError(
                "experts that are trained in float8 are multiplied as this rank's part: call "
                "grouped_mm with parameter.to_local()"
            )
        return super().__torch_dispatch__(func, types, args, kwargs)

    # --- what FSDP2 asks

    def fsdp_pre_all_gather(
        self,
        mesh: Any,
        outer_size: torch.Size,
        outer_stride: tuple[int, ...],
        module: nn.Module,
        mp_policy: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """This rank's experts, padded to the most that a rank has, in the dtype of the policy."""
        w = self.plain.detach()
        if mp_policy.param_dtype is not None:
            w = w.to(mp_policy.param_dtype)
        most = -(-outer_size[0] // mesh.size())
        if w.shape[1:] == outer_size[1:] and len(w) < most:
            w = F.pad(w, (0, 0) * (w.dim() - 1) + (0, most - len(w)))
        return (w,), (outer_size,)

    def fsdp_post_all_gather(
        self,
        gathered: tuple[Tensor, ...],
        metadata: tuple[Any, ...],
        param_dtype: torch.dtype,
        *,
        out: Any = None,
    ) -> Any:
        """All experts; `out` are those of the last time, which were gathered in place."""
        if out is not None:
            return None
        (w,), (outer_size,) = gathered, metadata
        # of shards of another dimension than the first, FSDP2 gives the shape of the shards
        whole = w.view(-1)[: outer_size.numel()].view(outer_size)
        return Float8Experts(whole, self.config, True), (w,)


_GROUPED: set[Any] = {F.grouped_mm, torch._grouped_mm, torch.ops.aten._grouped_mm.default}


def _know_transformers() -> None:
    """Its op for compiled experts that are not bfloat16, once it is imported."""
    op = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    if op is not None:
        _GROUPED.update((op, op.default))


class _Plain(torch.autograd.Function):
    """The memory of the parameter as an ordinary tensor, to autograd the parameter itself."""

    @staticmethod
    def forward(ctx: Any, w: Float8Experts) -> Tensor:
        return w.plain.view_as(w.plain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dw: Tensor) -> Tensor:
        return dw


def _grouped(
    x: Tensor,
    w_EKN: Any,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """What `grouped_mm(x_MK, w_EKN, offs=...)` computes, in float8."""
    if not isinstance(w_EKN, Float8Experts) or offs is None or x.dim() != 2 or bias is not None:
        raise UnsupportedOpError(
            "experts that are trained in float8 are multiplied by "
            "grouped_mm(x, w.mT, offs=offs), x (M, K), without a bias"
        )
    config = w_EKN.config
    holds = config.weight_cache != "off" and not w_EKN.gathered
    keeps = config.weight_cache == "step" and holds and not torch.compiler.is_compiling()
    kept = w_EKN._kept if keeps else None
    y = grouped_mm_of(x, _Plain.apply(w_EKN).mT, offs, config, holds=holds, kept=kept)
    return y if out_dtype is None else y.to(out_dtype)


def _wrapped(
    w: Tensor, config: Float8LinearConfig, requires_grad: bool, is_parameter: bool = True
) -> Any:
    _know_transformers()
    made = Float8Experts(w.detach(), config)
    return nn.Parameter(made, requires_grad) if is_parameter else made


def _save_ordinary(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State dicts hold ordinary tensors; of parameters, where keep_vars asks for these."""
    for name in module._parameters:
        value: Any = state.get(f"{prefix}{name}")
        if isinstance(local_of(value), Float8Experts) and not isinstance(value, nn.Parameter):
            state[f"{prefix}{name}"] = unwrapped(value)


class _Loaded:
    """Parameters that load_state_dict(assign=True) put in place of experts become experts."""

    def __init__(self) -> None:
        self.configs: dict[str, Float8LinearConfig] = {}

    def __call__(self, module: nn.Module, keys: Any) -> None:
        for name, config in self.configs.items():
            parameter: Any = module._parameters.get(name)
            if parameter is None or isinstance(local_of(parameter), Float8Experts):
                continue
            local = Float8Experts(local_of(parameter).detach(), config)
            made = nn.Parameter(with_local(parameter, local), parameter.requires_grad)
            module._parameters[name] = made


def _put(module: nn.Module, experts: dict[str, Any]) -> None:
    hooks = module._load_state_dict_post_hooks.values()
    loaded = next((hook for hook in hooks if isinstance(hook, _Loaded)), None)
    if loaded is None:
        loaded = _Loaded()
        module.register_load_state_dict_post_hook(loaded)
        module.register_state_dict_post_hook(_save_ordinary)
    for name, made in experts.items():
        module._parameters[name] = made
        loaded.configs[name] = made.config


# --- conversion of a model


def convert_experts_to_float8_training(
    model: nn.Module,
    *,
    config: Float8LinearConfig | None = None,
    parameter_filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> Report:
    """Train the fused experts of a model in float8: each parameter of three dimensions becomes a
    `Float8Experts` of the same memory, whose grouped products run on codes.

    For models that multiply experts by `torch.nn.functional.grouped_mm`, as those of Transformers
    do. Build the optimizer afterwards: parameters are new objects.

    config               None: the recipe "rowwise"; "rowwise_with_gw_hp" is the other. With
                         weight_cache="step" parameters keep their codes until they change
    parameter_filter_fn  parameter_filter_fn(module, name of the parameter) says which are
                         converted; None: all

    ConfigError for other scalings; ConversionError when there is nothing to convert.
    """
    config = Float8LinearConfig.from_recipe_name("rowwise") if config is None else config
    if config.scaling != "rowwise":
        raise ConfigError(f"experts are trained with scaling='rowwise', got {config.scaling!r}")
    called = getattr(getattr(model, "config", None), "_experts_implementation", "grouped_mm")
    if called not in ("grouped_mm", None):
        raise ConversionError(
            f"the model multiplies its experts by {called!r}, which is not grouped; call "
            "model.set_experts_implementation('grouped_mm') before"
        )
    rows: list[Row] = []
    reached: set[int] = set()
    made: dict[int, Any] = {}  # parameters that modules share stay one
    new: dict[nn.Module, dict[str, Any]] = {}
    for fqn, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.dim() != 3 or not parameter.is_floating_point():
                continue
            full = f"{fqn}.{name}" if fqn else name
            if isinstance(local_of(parameter), Float8Experts):
                raise ConversionError(f"{full}: is trained in float8 already")
            if local_of(parameter) is not parameter:
                raise ConversionError(
                    f"{full}: is a DTensor; convert experts before fully_shard or distribute_tensor"
                )
            chosen = parameter_filter_fn is None or parameter_filter_fn(module, full)
            if chosen:
                made.setdefault(id(parameter), _wrapped(parameter, config, parameter.requires_grad))
                new.setdefault(module, {})[name] = made[id(parameter)]
            size = 0 if id(parameter) in reached else parameter.nbytes
            reached.add(id(parameter))
            rows.append(
                Row(
                    fqn=full,
                    status="converted" if chosen else "skipped",
                    what="Float8Experts, rowwise" if chosen else "parameter_filter_fn says no",
                    shape=tuple(parameter.shape),
                    bytes_before=size,
                    bytes_after=size,
                )
            )
    if not new:
        raise ConversionError(
            "nothing to convert: "
            + ("parameter_filter_fn accepted none" if rows else "no parameter has three dimensions")
        )
    rest = [t for t in (*model.parameters(), *model.buffers()) if id(t) not in reached]
    for module, experts in new.items():
        _put(module, experts)
    return Report(rows=rows, untouched_bytes=sum(t.nbytes for t in rest))
