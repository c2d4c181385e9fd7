"""Experts in float8: the grouped products of a mixture of experts, forward and backward.

M tokens sorted by expert, E experts, N output features, K input features; offsets (E,) are the ends
of the experts' tokens. With e the expert of token m:

    forward  y_MN[m]   = Q(x_MK[m]) @ Q(w_ENK[e]).T
    dgrad    dx_MK[m]  = Q(dy_MN[m]) @ Q(w_EKN[e]).T
    wgrad    dw_ENK[e] = Q(dy_NM of e) @ Q(x_KM of e).T

Scales are of rows: a token, or an expert's feature. The tokens of an expert need no padding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ao_core.errors import ConfigError, ConversionError, UnsupportedOpError
from ao_core.report import Report, Row
from ao_kernels.ops import (
    float8_grouped_matmul,
    float8_grouped_wgrad,
    quantize_grouped_both,
    quantize_rowwise_both,
)

from .config import Float8LinearConfig
from .hardware import check_device

__all__ = ["Float8Experts", "convert_experts_to_float8_training", "float8_grouped_mm"]


def float8_grouped_mm(
    x: Tensor, w_ENK: Tensor, offsets: Tensor, config: Float8LinearConfig | None = None
) -> Tensor:
    """Each token times the weight of its expert, with gradients, on float8 codes.

    x        (M, K) bfloat16, float16 or float32, tokens sorted by expert
    w_ENK    (E, N, K) of the same dtype; for (E, K, N) give `w.mT`
    offsets  (E,) int32, ascending: the end of each expert's tokens. What is behind the last end
             gives zeros
    config   None: the recipe "rowwise". "rowwise_with_gw_hp" is the other that experts have

    Returns (M, N) in the dtype of x. ConfigError for other scalings, TypeError for dtypes,
    ValueError for shapes that do not fit, RuntimeError on devices that cannot multiply float8.
    """
    config = Float8LinearConfig.from_recipe_name("rowwise") if config is None else config
    _check(x, w_ENK, offsets, config)
    check_device(config.scaling, x.device, emulate=config.emulate)
    device = x.device.type
    dtype = x.dtype
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _GroupedProducts.apply(x, w_ENK, offsets, config, dtype)
    return _GroupedProducts.apply(x, w_ENK, offsets, config, dtype)


def _check(x: Tensor, w_ENK: Tensor, offsets: Tensor, config: Float8LinearConfig) -> None:
    if config.scaling != "rowwise":
        raise ConfigError(
            f"experts are trained with scaling='rowwise', got {config.scaling!r}; use the recipe "
            "'rowwise' or 'rowwise_with_gw_hp'"
        )
    if x.dim() != 2 or w_ENK.dim() != 3 or x.shape[1] != w_ENK.shape[2]:
        raise ValueError(
            f"x is {tuple(x.shape)} and w {tuple(w_ENK.shape)}; they must be (M, K) and (E, N, K)"
        )
    if x.dtype != w_ENK.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x has dtype {x.dtype} and w {w_ENK.dtype}; outside of torch.autocast they must be "
            "the same"
        )
    if offsets.shape != w_ENK.shape[:1]:
        raise ValueError(
            f"offsets are {tuple(offsets.shape)}; {w_ENK.shape[0]} experts need as many ends"
        )


class _GroupedProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_ENK: Tensor,
        offsets: Tensor,
        config: Float8LinearConfig,
        dtype: torch.dtype,
    ) -> Tensor:
        needs_x, needs_w = ctx.needs_input_grad[:2]
        M, (_, N, K) = x.shape[0], w_ENK.shape
        p2 = config.round_scales_to_power_of_2
        columns = needs_w and not config.grad_weight_in_high_precision
        x8 = quantize_grouped_both(
            x, config.input_dtype, offsets, p2, "both" if columns else "rows"
        )
        w8 = quantize_rowwise_both(w_ENK, config.weight_dtype, p2, "both" if needs_x else "rows")
        multiply = _reference(float8_grouped_matmul, config)
        y = multiply(x8[0][:M], x8[1][:M], w8[0], w8[1], offsets, dtype, config.use_fast_accum)
        exact = x.to(dtype) if needs_w and not columns else None
        found = (x8[2], x8[3], x8[4]) if columns else (exact, None, None)
        held = (w8[2], w8[3]) if needs_x else (None, None)
        ctx.save_for_backward(*found, *held, offsets)
        ctx.config, ctx.sizes, ctx.dtypes = config, (M, N, K), (x.dtype, w_ENK.dtype)
        return _cut(y, N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        config, (M, N, K) = ctx.config, ctx.sizes
        needs_x, needs_w = ctx.needs_input_grad[:2]
        x_saved, x_scale, ends, w_codes, w_scale, offsets = ctx.saved_tensors
        columns = needs_w and not config.grad_weight_in_high_precision
        dx = dw = None
        if needs_x or columns:
            outputs = "rows" if not columns else "both" if needs_x else "columns"
            p2 = config.round_scales_to_power_of_2
            dy8 = quantize_grouped_both(dy, config.grad_output_dtype, offsets, p2, outputs)
        if needs_x:
            multiply = _reference(float8_grouped_matmul, config)
            dx = _cut(multiply(dy8[0][:M], dy8[1][:M], w_codes, w_scale, offsets, ctx.dtypes[0]), K)
        if columns:
            multiply = _reference(float8_grouped_wgrad, config)
            dw = multiply(dy8[2], dy8[3], x_saved, x_scale, ends, ctx.dtypes[1])
            dw = dw if dw.shape[1:] == (N, K) else dw[:, :N, :K].contiguous()
        elif needs_w:
            # torch's product takes rows of multiples of 16 bytes
            dy, x_saved = (F.pad(t, (0, -t.shape[1] % 8)) for t in (dy, x_saved))
            dw = F.grouped_mm(dy.t(), x_saved, offs=offsets)[:, :N, :K].to(ctx.dtypes[1])
        return dx, dw, None, None, None


def _reference(op: Any, config: Float8LinearConfig) -> Any:
    if not config.emulate:
        return op
    # the reference reads the offsets: a compiler must not look inside
    return op.overload if torch.compiler.is_compiling() else op.reference


def _cut(y: Tensor, n: int) -> Tensor:
    return y if y.shape[1] == n else y[:, :n].contiguous()


# --- parameters of a model


class Float8Experts(Tensor):
    """A parameter (E, N, K), or (E, K, N), whose grouped products run in float8.

    `torch.nn.functional.grouped_mm(x, w.mT, offs=...)`, with or without `.mT`, calls
    `float8_grouped_mm`; everything else sees an ordinary tensor. FSDP2 would shard it into ordinary
    tensors, so it is refused.
    """

    config: Float8LinearConfig

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = _parameter(self.detach().clone(), self.config)
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _GROUPED:
            return _grouped(*args, **kwargs)
        if func in _SPLITS:
            raise UnsupportedOpError(
                f"{func.__name__} of experts that are trained in float8: FSDP2 cannot shard them "
                "yet; leave them out with parameter_filter_fn, or out of fully_shard"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        if func in _TRANSPOSES and isinstance(args[0], Float8Experts):
            found = found.as_subclass(Float8Experts)
            found.config = args[0].config
        return found


_GROUPED: set[Any] = {F.grouped_mm, torch._grouped_mm}
_SPLITS = {torch.chunk, Tensor.chunk, torch.split, Tensor.split}
_TRANSPOSES = {Tensor.mT.__get__, Tensor.transpose, torch.transpose}  # type: ignore[attr-defined]


def _grouped(
    x: Tensor,
    w_EKN: Any,
    *,
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
    y = float8_grouped_mm(x, w_EKN.as_subclass(Tensor).mT, offs, w_EKN.config)
    return y if out_dtype is None else y.to(out_dtype)


def _parameter(w: Tensor, config: Float8LinearConfig) -> Any:
    """Of the same memory. nn.Parameter would want detach() to keep the class, and then state dicts
    would hold it."""
    made: Any = w.detach().as_subclass(Float8Experts)
    made.requires_grad_(w.requires_grad)
    made.config, made._is_param = config, True
    return made


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

    config               None: the recipe "rowwise"; "rowwise_with_gw_hp" is the other
    parameter_filter_fn  parameter_filter_fn(module, name of the parameter) says which are
                         converted; None: all

    ConfigError for other scalings; ConversionError when there is nothing to convert.
    """
    config = Float8LinearConfig.from_recipe_name("rowwise") if config is None else config
    if config.scaling != "rowwise":
        raise ConfigError(f"experts are trained with scaling='rowwise', got {config.scaling!r}")
    rows, reached, new = [], set(), {}
    for fqn, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.dim() != 3 or not parameter.is_floating_point():
                continue
            full = f"{fqn}.{name}" if fqn else name
            if isinstance(parameter, Float8Experts):
                raise ConversionError(f"{full}: is trained in float8 already")
            chosen = parameter_filter_fn is None or parameter_filter_fn(module, full)
            if chosen:
                new[module, name] = _parameter(parameter, config)
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
    for (module, name), made in new.items():
        module._parameters[name] = made
    return Report(rows=rows, untouched_bytes=sum(t.nbytes for t in rest))
