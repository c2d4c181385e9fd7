"""Float8Linear: a linear layer whose three products run on codes.

M tokens, N output features, K input features. What is cast, saved and multiplied (docs/numerics.md
has the equations):

    forward   y_MN  = x8_MK  @ w8_NK.T        saved: x8_KM, and w8_KN or w
    dgrad     dx_MK = dy8_MN @ w8_KN.T
    wgrad     dw_NK = dy8_NM @ x8_KM.T        (the tensors as they are, where that is configured)

x is never saved beside its codes. `x8_KM` is the transposed tensor, because the matrix units read
float8 operands along the dimension that is summed over.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .attention_output import Source, source_of
from .cast_cache import GRADIENTS, INPUTS, LastCast, WeightCodes
from .cast_tensor import CastTensor, codes_of
from .config import Float8LinearConfig
from .fsdp import ShardedWeight
from .hardware import check_device
from .operands import Codes, Plan, cast, product
from .wrapped import unwrapped

__all__ = ["Float8Linear", "float8_linear", "plan_of"]

is_compiling = torch.compiler.is_compiling
unsafe_view = torch.ops.aten._unsafe_view.default


def plan_of(config: Float8LinearConfig) -> Plan:
    """A config as the plain values that a call reads."""
    return Plan(
        scaling=config.scaling,
        input_dtype=config.input_dtype,
        weight_dtype=config.weight_dtype,
        grad_output_dtype=config.grad_output_dtype,
        power_of_two=config.round_scales_to_power_of_2,
        wgrad_is_exact=config.grad_weight_in_high_precision,
        # the library's product of blocks has no such mode
        fast_accum=config.use_fast_accum and config.scaling != "blockwise",
        weight_cache=config.weight_cache,
        recasts=config.recompute_casts,
        emulate=config.emulate,
    )


class Float8Linear(nn.Linear):
    """A linear layer that is trained on codes; made by `convert_to_float8_training`.

    Its parameters are those of the nn.Linear that it was, and so is its state dict.
    """

    config: Float8LinearConfig

    @classmethod
    def from_float(
        cls, module: nn.Linear, config: Float8LinearConfig | None = None
    ) -> "Float8Linear":
        """A float8 layer with the very parameters of `module`; nothing is copied."""
        if type(module) is not nn.Linear:
            raise TypeError(f"from_float takes an nn.Linear, got {type(module).__name__}")
        layer = cls.__new__(cls)
        layer.__dict__.update(module.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            layer.__dict__[name] = dict(module.__dict__[name])
        layer.configure(Float8LinearConfig() if config is None else config)
        return layer

    def to_float(self) -> nn.Linear:
        """The nn.Linear that this layer was, with the very parameters that it has now."""
        layer = nn.Linear.__new__(nn.Linear)
        layer.__dict__.update(self.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            layer.__dict__[name] = dict(self.__dict__[name])
        for name in ("config", "_plan", "_weight_codes"):
            del layer.__dict__[name]
        if isinstance(self.weight, ShardedWeight):
            layer.weight = nn.Parameter(self.weight.plain, self.weight.requires_grad)
        return layer

    def configure(self, config: Float8LinearConfig) -> None:
        """Train by `config` from now on."""
        if not isinstance(config, Float8LinearConfig):
            raise TypeError(f"expected a Float8LinearConfig, got {config!r}")
        self.config = config
        self._plan = plan_of(config)
        self._weight_codes = WeightCodes()
        if config.enable_fsdp_float8_all_gather:
            self._weight_to_gather()

    def _weight_to_gather(self) -> None:
        """A parameter of the same memory that tells FSDP2 to gather codes."""
        weight = self.weight
        if not isinstance(weight, ShardedWeight):
            wrapped = ShardedWeight(weight.detach(), self._plan)
            self.weight = nn.Parameter(wrapped, requires_grad=weight.requires_grad)

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP2 swaps parameters, and gathers new values without a new version
        if name == "weight" and "_weight_codes" in self.__dict__:
            self._weight_codes.drop()
        super().__setattr__(name, value)

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N), in the dtype of `input`, or that of autocast."""
        if hasattr(self.weight, "device_mesh"):
            from .tensor_parallel import distributed_linear  # DTensor takes a second to import

            return distributed_linear(self, input)
        kept = self._weight_codes if self._plan.weight_cache in ("step", "scale") else None
        return float8_linear(input, self.weight, self.bias, self._plan, kept=kept)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        key = f"{prefix}weight"
        if key in destination:  # what FSDP2 gathers as codes is saved as an ordinary tensor
            destination[key] = unwrapped(destination[key])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling={self.config.scaling}"


def float8_linear(
    x: Tensor, w_NK: Tensor, bias: Tensor | None, plan: Plan, *, kept: WeightCodes | None = None
) -> Tensor:
    """(..., K), (N, K), (N,) -> (..., N); what `Float8Linear` computes.

    TypeError for dtypes that nn.Linear would refuse, ValueError for shapes, RuntimeError on devices
    that cannot multiply codes unless the plan emulates.
    """
    if x.shape[-1] != w_NK.shape[1]:
        raise ValueError(
            f"the input has shape {tuple(x.shape)}; its last dimension must be the layer's "
            f"{w_NK.shape[1]} input features"
        )
    check_device(plan.scaling, x.device, emulate=plan.emulate)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _linear(x, w_NK, bias, plan, dtype, kept)
    if x.dtype != w_NK.dtype or not x.dtype.is_floating_point:
        raise TypeError(
            f"the input has dtype {x.dtype} and the weight {w_NK.dtype}; outside of torch.autocast "
            "they must be the same: convert one with .to(dtype)"
        )
    return _linear(x, w_NK, bias, plan, x.dtype, kept)


def _linear(
    x: Tensor,
    w_NK: Tensor,
    bias: Tensor | None,
    plan: Plan,
    dtype: torch.dtype,
    kept: WeightCodes | None,
) -> Tensor:
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    grad = torch.is_grad_enabled()
    needs_x, needs_w = grad and x.requires_grad, grad and w_NK.requires_grad
    if not (needs_x or needs_w or (grad and bias is not None and bias.requires_grad)):
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], w_NK.shape[0]), dtype=dtype)
        return _forward(x, w_NK, bias, plan, dtype, False, False, kept)[0]
    return _Products.apply(x, w_NK, bias, plan, dtype, needs_x, needs_w, kept)


def _shared(
    last: LastCast,
    x: Tensor,
    x_RC: Tensor,
    dtype: torch.dtype,
    plan: Plan,
    outputs: str,
    scale: Tensor | None = None,
) -> Codes:
    if is_compiling():  # equal casts of a graph are merged by the compiler
        return cast(x_RC, dtype, plan, outputs, scale=scale)
    return last.cast(x, x_RC, dtype, plan, outputs, scale=scale)


def _forward(
    x: Tensor,
    w_NK: Tensor,
    bias: Tensor | None,
    plan: Plan,
    dtype: torch.dtype,
    needs_x: bool,
    needs_w: bool,
    kept: WeightCodes | None,
) -> tuple[Tensor, Codes, Codes, bool]:
    """y, the codes of x and w, and whether backward has the columns of w."""
    N, K = w_NK.shape
    M = x.numel() // K
    recasts = plan.recasts and not isinstance(x, CastTensor)
    outputs = "both" if needs_w and not plan.wgrad_is_exact and not recasts else "rows"
    if isinstance(w_NK, ShardedWeight):
        w_NK = w_NK.plain
    if isinstance(x, CastTensor):
        x8 = codes_of(x, outputs, keep=True)
    else:
        x8 = _shared(INPUTS, x, x.reshape(-1, K), plan.input_dtype, plan, outputs)
    if isinstance(w_NK, CastTensor):  # FSDP2 frees it behind forward: nothing is held
        w8, holds = codes_of(w_NK, "rows"), False
    elif kept is not None and plan.weight_cache == "step" and not is_compiling():
        w8, holds = kept.cast(w_NK, plan, source=w_NK), True
    else:
        holds = needs_x and _holds_weight(plan, M, N)
        outputs = "both" if holds else "rows"
        if kept is not None and not is_compiling():
            w8 = kept.cast_by_scale(w_NK, plan, outputs)
        else:
            w8 = cast(w_NK, plan.weight_dtype, plan, outputs, is_weight=True)
    y_MN = product(
        x8.rows,
        x8.row_scale,
        w8.rows,
        w8.row_scale,
        (M, N),
        plan,
        bias=bias,
        dtype=dtype,
        fast_accum=plan.fast_accum,
    )
    # no view to autograd, which would refuse in-place operations on what the layer gives
    return unsafe_view(y_MN, (*x.shape[:-1], N)), x8, w8, holds


def _holds_weight(plan: Plan, M: int, N: int) -> bool:
    """Whether the transposed codes of w (N, K) stay from forward to backward: where they take no
    more memory than saving the input as codes has won. Inputs that are saved as they are win none,
    and a compiler, which makes inputs anew from what it saves anyway, would save that much less."""
    saves_codes = not (plan.wgrad_is_exact or plan.recasts)
    return plan.weight_cache != "off" and N <= M and saves_codes and not is_compiling()


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_NK: Tensor,
        bias: Tensor | None,
        plan: Plan,
        dtype: torch.dtype,
        needs_x: bool,
        needs_w: bool,
        kept: WeightCodes | None,
    ) -> Tensor:
        ctx.plan, ctx.shape, ctx.sizes = plan, x.shape, w_NK.shape
        ctx.x_dtype, ctx.w_dtype = x.dtype, w_NK.dtype
        if x.numel() == 0:  # nothing to cast
            return x.new_empty((*x.shape[:-1], w_NK.shape[0]), dtype=dtype)
        y, x8, w8, holds = _forward(x, w_NK, bias, plan, dtype, needs_x, needs_w, kept)
        x_saved, x_scale, w_saved, w_scale = None, None, None, None
        ctx.recasts = needs_w and plan.recasts and not plan.wgrad_is_exact
        ctx.recasts = ctx.recasts and not isinstance(x, CastTensor)
        ctx.x_dims = None
        if needs_w:
            if ctx.recasts:
                x_saved, x_scale = x, x8.row_scale if plan.scaling == "tensorwise" else None
            elif not plan.wgrad_is_exact:
                x_saved, x_scale = x8.columns, x8.column_scale
            else:
                x_saved = x.dequantize() if isinstance(x, CastTensor) else x.to(dtype)
            if x_saved is x and not is_compiling():
                source = source_of(x)
                if source is not None:
                    x_saved, ctx.x_dims = source
        if needs_x:
            if holds:
                w_saved, w_scale = w8.columns, w8.column_scale
            else:  # cast again in backward; the scale of a tensor is known by then
                w_saved, w_scale = w_NK, w8.row_scale if plan.scaling == "tensorwise" else None
        ctx.save_for_backward(x_saved, x_scale, w_saved, w_scale)
        ctx.holds = holds
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        device = dy.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                grads = _backward(ctx, dy)
        else:
            grads = _backward(ctx, dy)
        return (*grads, None, None, None, None, None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, w and bias."""
    plan, (N, K) = ctx.plan, ctx.sizes
    needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
    if dy.numel() == 0:
        return (
            dy.new_zeros(ctx.shape, dtype=ctx.x_dtype) if needs_x else None,
            dy.new_zeros(ctx.sizes, dtype=ctx.w_dtype) if needs_w else None,
            dy.new_zeros(N) if needs_bias else None,
        )
    x_saved, x_scale, w_saved, w_scale = ctx.saved_tensors
    if ctx.x_dims is not None:
        x_saved = Source(x_saved, ctx.x_dims).copy(ctx.shape)
    codes = dy if isinstance(dy, CastTensor) else None  # of tokens that were gathered
    dy = dy if codes is None or not (needs_bias or plan.wgrad_is_exact) else codes.dequantize()
    dx = dw = None
    columns = needs_w and not plan.wgrad_is_exact
    if needs_x or columns:
        outputs = "rows" if not columns else "both" if needs_x else "columns"
        if codes is not None:
            dy8 = codes_of(codes, outputs)
        else:
            dy_MN = dy.reshape(-1, N)
            dy8 = _shared(GRADIENTS, dy, dy_MN, plan.grad_output_dtype, plan, outputs)
    if needs_x:
        if isinstance(w_saved, CastTensor):
            w8 = codes_of(w_saved, "columns")
            w_saved, w_scale = w8.columns, w8.column_scale
        elif not ctx.holds:
            w_saved = w_saved.plain if isinstance(w_saved, ShardedWeight) else w_saved
            w8 = cast(w_saved, plan.weight_dtype, plan, "columns", scale=w_scale, is_weight=True)
            w_saved, w_scale = w8.columns, w8.column_scale
        shape = (dy.numel() // N, K)
        dx_MK = product(dy8.rows, dy8.row_scale, w_saved, w_scale, shape, plan, dtype=ctx.x_dtype)
        dx = dx_MK.view(ctx.shape)
    if columns and ctx.recasts:
        x_KM = _shared(
            INPUTS, x_saved, x_saved.reshape(-1, K), plan.input_dtype, plan, "columns", x_scale
        )
        x_saved, x_scale = x_KM.columns, x_KM.column_scale
    if columns:
        dw = product(
            dy8.columns, dy8.column_scale, x_saved, x_scale, (N, K), plan, dtype=ctx.w_dtype
        )
    elif needs_w:
        dw = (dy.reshape(-1, N).t() @ x_saved.reshape(-1, K)).to(ctx.w_dtype)
    return dx, dw, dy.reshape(-1, N).sum(0) if needs_bias else None
