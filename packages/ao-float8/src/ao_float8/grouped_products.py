"""The grouped products of a mixture of experts in float8, forward and backward.

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
from torch import Tensor
from torch.autograd.function import once_differentiable

from ao_core.errors import ConfigError
from ao_kernels.ops import (
    float8_grouped_matmul,
    float8_grouped_wgrad,
    quantize_grouped_both,
    quantize_rowwise_both,
)

from .config import Float8LinearConfig
from .hardware import check_device
from .operands import Codes

__all__ = ["float8_grouped_mm"]


def float8_grouped_mm(
    x: Tensor, w_ENK: Tensor, offsets: Tensor, config: Float8LinearConfig | None = None
) -> Tensor:
    """Each token times the weight of its expert, with gradients, on float8 codes.

    x        (M, K) bfloat16, float16 or float32, tokens sorted by expert
    w_ENK    (E, N, K) of the same dtype; for (E, K, N) give `w.mT`
    offsets  (E,) int32, ascending: the end of each expert's tokens. What is behind the last end
             gives zeros
    config   None: the recipe "rowwise". "rowwise_with_gw_hp" is the other that experts have.
             weight_cache="step" is "pass" here: it is converted parameters that keep codes
             (`convert_experts_to_float8_training`)

    Returns (M, N) in the dtype of x. ConfigError for other scalings, TypeError for dtypes,
    ValueError for shapes that do not fit, RuntimeError on devices that cannot multiply float8.
    """
    config = Float8LinearConfig.from_recipe_name("rowwise") if config is None else config
    return grouped_mm_of(x, w_ENK, offsets, config, holds=config.weight_cache != "off")


def grouped_mm_of(
    x: Tensor,
    w_ENK: Tensor,
    offsets: Tensor,
    config: Float8LinearConfig,
    *,
    holds: bool,
    kept: Callable[[Tensor], Codes] | None = None,
) -> Tensor:
    """`float8_grouped_mm`.

    holds  codes of w, until backward; else w is saved and cast again
    kept   gives the codes of w in both directions, where some are kept
    """
    _check(x, w_ENK, offsets, config)
    check_device(config.scaling, x.device, emulate=config.emulate)
    device = x.device.type
    dtype = x.dtype
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _GroupedProducts.apply(x, w_ENK, offsets, config, dtype, holds, kept)
    return _GroupedProducts.apply(x, w_ENK, offsets, config, dtype, holds, kept)


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
        holds: bool,
        kept: Callable[[Tensor], Codes] | None,
    ) -> Tensor:
        needs_x, needs_w = ctx.needs_input_grad[:2]
        M, (_, N, K) = x.shape[0], w_ENK.shape
        p2 = config.round_scales_to_power_of_2
        columns = needs_w and not config.grad_weight_in_high_precision
        x8 = quantize_grouped_both(
            x, config.input_dtype, offsets, p2, "both" if columns else "rows"
        )
        if kept is not None:
            w8 = kept(w_ENK)
        else:
            outputs = "both" if needs_x and holds else "rows"
            w8 = quantize_rowwise_both(w_ENK, config.weight_dtype, p2, outputs)
        multiply = _multiply(float8_grouped_matmul, config, offsets)
        y = multiply(x8[0][:M], x8[1][:M], w8[0], w8[1], offsets, dtype, config.use_fast_accum)
        exact = x.to(dtype) if needs_w and not columns else None
        found = (x8[2], x8[3], x8[4]) if columns else (exact, None, None)
        held = (w8[2], w8[3]) if needs_x and holds else (w_ENK if needs_x else None, None)
        ctx.save_for_backward(*found, *held, offsets)
        ctx.config, ctx.sizes, ctx.dtypes = config, (M, N, K), (x.dtype, w_ENK.dtype)
        return _cut(y, N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        config, (M, N, K) = ctx.config, ctx.sizes
        needs_x, needs_w = ctx.needs_input_grad[:2]
        x_saved, x_scale, ends, w_saved, w_scale, offsets = ctx.saved_tensors
        columns = needs_w and not config.grad_weight_in_high_precision
        dx = dw = None
        if needs_x or columns:
            outputs = "rows" if not columns else "both" if needs_x else "columns"
            p2 = config.round_scales_to_power_of_2
            dy8 = quantize_grouped_both(dy, config.grad_output_dtype, offsets, p2, outputs)
        if needs_x:
            if w_scale is None:
                w8 = quantize_rowwise_both(w_saved, config.weight_dtype, p2, "columns")
                w_saved, w_scale = w8[2:]
            multiply = _multiply(float8_grouped_matmul, config, offsets)
            dx = _cut(multiply(dy8[0][:M], dy8[1][:M], w_saved, w_scale, offsets, ctx.dtypes[0]), K)
        if columns:
            multiply = _multiply(float8_grouped_wgrad, config, offsets)
            dw = multiply(dy8[2], dy8[3], x_saved, x_scale, ends, ctx.dtypes[1])
            dw = dw if dw.shape[1:] == (N, K) else dw[:, :N, :K].contiguous()
        elif needs_w:
            # torch's product takes rows of multiples of 16 bytes
            dy, x_saved = (F.pad(t, (0, -t.shape[1] % 8)) for t in (dy, x_saved))
            dw = F.grouped_mm(dy.t(), x_saved, offs=offsets)[:, :N, :K].to(ctx.dtypes[1])
        return dx, dw, None, None, None, None, None


def _multiply(op: Any, config: Float8LinearConfig, x: Tensor) -> Any:
    # the reference reads the offsets: a compiler, and its fake tensors, must not look inside
    traced = torch.compiler.is_compiling() or type(x) is not Tensor
    return op.overload if traced else op.reference if config.emulate else op


def _cut(y: Tensor, n: int) -> Tensor:
    return y if y.shape[1] == n else y[:, :n].contiguous()
