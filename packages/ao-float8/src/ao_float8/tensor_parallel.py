"""Tensor and sequence parallel: `Float8Linear` on DTensors, and float8 where tokens are gathered.

    from ao_float8.tensor_parallel import Float8ColwiseParallel, Float8RowwiseParallel

Each rank casts what it multiplies, with a scale of its own shard; sums of products are those of
DTensor. Where sequence parallel gathers tokens, codes travel, half the bytes of bfloat16: of inputs
in forward (`Float8ColwiseParallel`, `PrepareFloat8ModuleInput`), of gradients in backward
(`Float8RowwiseParallel`). They have one scale, of the largest magnitude of all ranks. Sums that are
scattered stay in high precision. Only tensorwise scaling gathers codes, and only without a
compiler: it cannot follow a gradient that is codes. Else tensors are gathered as they are.
"""

from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel

from ao_kernels.ops import quantize_tensorwise

from .cast_tensor import CastTensor
from .fsdp import agreed_scale, largest_magnitude
from .linear import Float8Linear, float8_linear
from .operands import Plan

is_compiling = torch.compiler.is_compiling

__all__ = [
    "Float8ColwiseParallel",
    "Float8RowwiseParallel",
    "PrepareFloat8ModuleInput",
    "distributed_linear",
]


def distributed_linear(layer: Float8Linear, x: Tensor) -> Tensor:
    """A layer whose weight is a DTensor (N, K) on a mesh of one dimension.

    weight      x (..., K)                     result (..., N)
    Shard(0)    Replicate(), or a CastTensor   Shard(-1)
    Shard(1)    Shard(-1)                      Partial()
    Replicate() Replicate() or Shard(d)        as x

    The result is a DTensor, but local behind `Float8RowwiseParallel`, which reduces it. ValueError
    for other placements.
    """
    weight: Any = layer.weight
    bias: Any = layer.bias
    assert isinstance(weight, DTensor), "ordinary weights do not come here"
    mesh, where = weight.device_mesh, weight.placements
    if not isinstance(x, (DTensor, CastTensor)):
        raise ValueError(
            "the weight of this layer is a DTensor and its input is none; use "
            "Float8ColwiseParallel or Float8RowwiseParallel, or give it a DTensor"
        )
    given = x.placements if isinstance(x, DTensor) else (Replicate(),)
    last = x.dim() - 1
    if where == (Shard(0),) and given == (Replicate(),):
        local_x = x.to_local(grad_placements=[Partial()]) if isinstance(x, DTensor) else x
        local_bias = None if bias is None else bias.to_local()
        y = float8_linear(local_x, weight.to_local(), local_bias, layer._plan)
        return DTensor.from_local(y, mesh, [Shard(last)], run_check=False)
    if where == (Shard(1),) and given in ((Shard(-1),), (Shard(last),)) and isinstance(x, DTensor):
        y = float8_linear(x.to_local(), weight.to_local(), None, layer._plan)
        if layer.__dict__.get("_gives_local") and not is_compiling():
            return y
        whole = DTensor.from_local(y, mesh, [Partial()], run_check=False)
        return whole if bias is None else whole.redistribute(placements=[Replicate()]) + bias
    over_tokens = isinstance(given[0], Shard) and given[0].dim % x.dim() != last
    if where == (Replicate(),) and isinstance(x, DTensor) and (over_tokens or given == where):
        grads = [Partial()] if over_tokens else [Replicate()]
        local_bias = None if bias is None else bias.to_local(grad_placements=grads)
        y = float8_linear(
            x.to_local(), weight.to_local(grad_placements=grads), local_bias, layer._plan
        )
        return DTensor.from_local(y, mesh, given, run_check=False)
    raise ValueError(
        f"an input placed as {given} and a weight placed as {where} cannot be multiplied; allowed "
        "are weights (Shard(0),) with inputs (Replicate(),), (Shard(1),) with (Shard(-1),), and "
        "(Replicate(),) with (Replicate(),) or tokens that are sharded"
    )


# --- gathering codes


def _gathered(x: Tensor, dim: int, dtype: torch.dtype, power_of_two: bool, mesh: Any) -> CastTensor:
    """Every rank's x, one after the other along `dim`, as codes of one scale."""
    group = mesh.get_group()
    amax = collectives.all_reduce(largest_magnitude(x), "max", group)
    scale = agreed_scale(collectives.wait_tensor(amax), dtype, power_of_two)
    codes, _ = quantize_tensorwise(x.contiguous(), dtype, scale)
    whole = collectives.all_gather_tensor(codes.view(torch.uint8), dim, group)
    whole = collectives.wait_tensor(whole).contiguous()
    return CastTensor(whole.view(dtype), scale, x.dtype)


def _scattered(x: Tensor, dim: int, mesh: Any) -> Tensor:
    """This rank's part of the sum of every rank's x."""
    size = mesh.size()
    if x.shape[dim] % size:
        raise ValueError(
            f"sequence parallel: dimension {dim} of {tuple(x.shape)} does not divide by {size} "
            "ranks; pad the sequence"
        )
    found = collectives.reduce_scatter_tensor(x.contiguous(), "sum", dim, mesh.get_group())
    return collectives.wait_tensor(found)


class _GatherInput(torch.autograd.Function):
    """Codes of all tokens forward; the sum of the gradients, scattered, backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, plan: Plan, mesh: Any) -> Tensor:
        ctx.dim, ctx.mesh = dim, mesh
        return _gathered(x, dim, plan.input_dtype, plan.power_of_two, mesh)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return _scattered(dy, ctx.dim, ctx.mesh), None, None, None


class _ScatterOutput(torch.autograd.Function):
    """The sum of the outputs, scattered, forward; codes of all tokens' gradient backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dim: int, plan: Plan, mesh: Any) -> Tensor:
        ctx.dim, ctx.mesh, ctx.plan = dim, mesh, plan
        return _scattered(y, dim, mesh)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        plan = ctx.plan
        whole = _gathered(dy, ctx.dim, plan.grad_output_dtype, plan.power_of_two, ctx.mesh)
        return whole, None, None, None


def _gather_tokens(x: Tensor, layout: Any, plan: Plan, mesh: Any) -> Tensor:
    """x, of which each rank has some tokens, as codes of all tokens."""
    local = x.to_local() if isinstance(x, DTensor) else x
    return _GatherInput.apply(local, layout.dim % x.dim(), plan, mesh)


def _shards_tokens(layout: Any, x: Tensor) -> bool:
    return isinstance(layout, Shard) and layout.dim % x.dim() != x.dim() - 1


# --- styles of torch's parallelize_module


def _needs_float8(module: nn.Module, style: str) -> Float8Linear:
    if not isinstance(module, Float8Linear):
        raise TypeError(
            f"{style} is for a Float8Linear, got {type(module).__name__}; convert the model with "
            f"convert_to_float8_training first, or use torch's {style.removeprefix('Float8')}"
        )
    return module


class Float8ColwiseParallel(ColwiseParallel):
    """torch's ColwiseParallel for a `Float8Linear`: output features are sharded.

    With tokens sharded (`input_layouts=Shard(1)`), they are gathered as codes.
    """

    @staticmethod
    def _prepare_input_fn(
        input_layouts: Any, desired_input_layouts: Any, mod: Any, inputs: Any, device_mesh: Any
    ) -> Any:
        x = inputs[0]
        if isinstance(x, CastTensor):  # by PrepareFloat8ModuleInput
            return x
        wanted = desired_input_layouts == (Replicate(),) and mod._plan.scaling == "tensorwise"
        if wanted and not is_compiling() and _shards_tokens(input_layouts[0], x):
            return _gather_tokens(x, input_layouts[0], mod._plan, device_mesh)
        return ColwiseParallel._prepare_input_fn(
            input_layouts, desired_input_layouts, mod, inputs, device_mesh
        )

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        return super()._apply(_needs_float8(module, "Float8ColwiseParallel"), device_mesh)


class Float8RowwiseParallel(RowwiseParallel):
    """torch's RowwiseParallel for a `Float8Linear`: input features are sharded.

    With tokens sharded behind it (`output_layouts=Shard(1)`), gradients are gathered as codes.
    """

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: Any, mod: Any, outputs: Any, device_mesh: Any
    ) -> Any:
        if isinstance(outputs, DTensor):
            return RowwiseParallel._prepare_output_fn(
                output_layouts, use_local_output, mod, outputs, device_mesh
            )
        layout = output_layouts[0]
        y = _ScatterOutput.apply(outputs, layout.dim % outputs.dim(), mod._plan, device_mesh)
        if use_local_output and mod.bias is None:
            return y
        y = DTensor.from_local(y, device_mesh, output_layouts, run_check=False)
        if mod.bias is not None:
            y = y + mod.bias
        return y.to_local() if use_local_output else y

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        layer = _needs_float8(module, "Float8RowwiseParallel")
        layout = self.output_layouts[0]
        # of a batch of sequences, the last dimension are features
        gathers = isinstance(layout, Shard) and layout.dim >= 0
        layer.__dict__["_gives_local"] = gathers and layer._plan.scaling == "tensorwise"
        return super()._apply(layer, device_mesh)


class PrepareFloat8ModuleInput(PrepareModuleInput):
    """torch's PrepareModuleInput, for a module whose layers that read the input are `Float8Linear`s
    of one config: tokens that are sharded are cast and gathered once, as codes.

    What it gives then is a `CastTensor`, which only `Float8Linear` reads.

    float8_dtype                  must be that of the layers' inputs; None: theirs
    fwd_config_submodule_fqn      the layer to take the config from; None: the first one

    Other arguments as of PrepareModuleInput. TypeError in `parallelize_module` for a module without
    such a layer.
    """

    def __init__(
        self,
        *,
        input_layouts: Any = None,
        desired_input_layouts: Any = None,
        input_kwarg_layouts: Any = None,
        desired_input_kwarg_layouts: Any = None,
        use_local_output: bool = False,
        float8_dtype: torch.dtype | None = None,
        fwd_config_submodule_fqn: str | None = None,
    ) -> None:
        super().__init__(
            input_layouts=input_layouts,
            desired_input_layouts=desired_input_layouts,
            input_kwarg_layouts=input_kwarg_layouts,
            desired_input_kwarg_layouts=desired_input_kwarg_layouts,
            use_local_output=use_local_output,
        )
        self.float8_dtype = float8_dtype
        self.fwd_config_submodule_fqn = fwd_config_submodule_fqn
        self._plan: Plan | None = None

    def _prepare_input_arg(
        self, input: Any, mesh: Any, input_layout: Any, desired_layout: Any
    ) -> Any:
        plan = self._plan
        if (
            plan is not None
            and plan.scaling == "tensorwise"
            and not is_compiling()
            and isinstance(input, Tensor)
            and desired_layout == Replicate()
            and _shards_tokens(input_layout, input)
        ):
            return _gather_tokens(input, input_layout, plan, mesh)
        return super()._prepare_input_arg(input, mesh, input_layout, desired_layout)

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        name = self.fwd_config_submodule_fqn
        layers = [module.get_submodule(name)] if name is not None else list(module.modules())
        found = [layer for layer in layers if isinstance(layer, Float8Linear)]
        if not found:
            raise TypeError(
                f"PrepareFloat8ModuleInput: {name or type(module).__name__} is or has no "
                "Float8Linear; convert the model with convert_to_float8_training first"
            )
        self._plan = found[0]._plan
        if self.float8_dtype not in (None, self._plan.input_dtype):
            raise ValueError(
                f"PrepareFloat8ModuleInput: float8_dtype is {self.float8_dtype}, and the layers "
                f"take {self._plan.input_dtype}"
            )
        return super()._apply(module, device_mesh)
