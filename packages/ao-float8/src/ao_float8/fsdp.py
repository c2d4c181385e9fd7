"""FSDP2 gathers weights as float8 codes: half the bytes of bfloat16.

`ShardedWeight` is the parameter that a rank holds: the weight in high precision, and a word about
how it is cast. FSDP2 asks it what to gather. The scale is that of the whole weight, so the ranks
first agree on the largest magnitude: with one all-reduce a weight, or, where
`precompute_float8_dynamic_scale_for_fsdp(model)` is called behind each optimizer step, with one for
all of them.

To optimizers it is an ordinary tensor; state dicts hold ordinary tensors, which share its memory.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ao_core.numerics import TINY, next_power_of_two
from ao_kernels.ops import quantize_tensorwise

from .cast_cache import WeightCodes, count_steps
from .cast_tensor import CastTensor
from .operands import Plan
from .wrapped import WrappedParameter

__all__ = [
    "ShardedWeight",
    "agreed_scale",
    "largest_magnitude",
    "precompute_float8_dynamic_scale_for_fsdp",
]


class _Amax:
    """The largest magnitude of a weight, found before FSDP2 asks; shared by all views of the
    parameter. Where it may be outdated it is unknown, on every rank alike: behind a step of any
    optimizer, and a change in place."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory  # of the parameter
        self.value: Tensor | None = None
        self.steps = -1
        self.group: Any = None  # over which the weight is sharded, once FSDP2 has said so

    def known(self) -> Tensor | None:
        return self.value if self.steps == WeightCodes.steps else None

    def set(self, value: Tensor | None) -> None:
        self.value, self.steps = value, WeightCodes.steps


class ShardedWeight(WrappedParameter):
    """A weight, or the shard of one, that FSDP2 gathers as codes."""

    def __init__(self, inner: Tensor, plan: Plan, amax: _Amax | None = None) -> None:
        self.plain, self.plan, self.largest = inner, plan, amax or _Amax(inner)
        count_steps()

    def _like(self, inner: Tensor, *, shares_memory: bool) -> "ShardedWeight":
        # what has memory of its own has a largest magnitude of its own
        return ShardedWeight(inner, self.plan, self.largest if shares_memory else None)

    def _written(self) -> None:
        self.largest.set(None)
        memory = self.largest.memory
        if not memory.is_inference():  # whose version WeightCodes looks at
            torch.autograd.graph.increment_version(memory)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["plain"], self.plan

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], plan: Any, outer_size: Any, outer_stride: Any
    ) -> "ShardedWeight":
        return ShardedWeight(inner["plain"], plan)

    def __reduce_ex__(self, protocol: Any) -> Any:  # files hold what it is to everybody else
        return self.plain.__reduce_ex__(protocol)

    # --- what FSDP2 asks

    def fsdp_pre_all_gather(
        self,
        mesh: Any,
        outer_size: torch.Size,
        outer_stride: tuple[int, ...],
        module: nn.Module,
        mp_policy: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """The codes of this rank's rows, padded to the most that a rank has, and the scale."""
        self.largest.group = mesh.get_group()
        x, amax = self.plain.detach(), self.largest.known()
        if amax is None:
            amax = largest_magnitude(x)
            dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=self.largest.group)
        if mp_policy.param_dtype is not None:
            # the bits of gathering this dtype and casting then; rounding keeps the order
            x, amax = x.to(mp_policy.param_dtype), amax.to(mp_policy.param_dtype).float()
        scale = agreed_scale(amax, self.plan.weight_dtype, self.plan.power_of_two)
        rows = -(-outer_size[0] // mesh.size())
        codes, _ = quantize_tensorwise(x.contiguous(), self.plan.weight_dtype, scale)
        codes = codes.view(torch.uint8)  # some backends do not know float8
        if len(codes) < rows:
            padding = (0, 0) * (codes.dim() - 1) + (0, rows - len(codes))
            codes = torch.nn.functional.pad(codes, padding)
        return (codes,), (scale, outer_size)

    def fsdp_post_all_gather(
        self,
        gathered: tuple[Tensor, ...],
        metadata: tuple[Any, ...],
        param_dtype: torch.dtype,
        *,
        out: Any = None,
    ) -> Any:
        """The whole weight; `out` is that of the last time, whose codes were gathered in place."""
        (codes,), (scale, outer_size) = gathered, metadata
        if out is not None:
            weight = out._local_tensor if hasattr(out, "_local_tensor") else out
            assert isinstance(weight, CastTensor), "FSDP2 gives back what it was given"
            weight.scale = scale
            return None
        whole = codes[: outer_size[0]].view(self.plan.weight_dtype)
        return CastTensor(whole, scale, param_dtype), (codes,)


def largest_magnitude(x: Tensor) -> Tensor:
    """() float32: the largest magnitude of a shard, which may be empty; NaN beats all."""
    if not x.numel():
        return torch.zeros((), device=x.device)
    largest = x.abs().max().float()
    # max over ranks may lose a NaN; infinity gives a NaN scale as well
    return torch.where(largest.isnan(), torch.inf, largest)


def agreed_scale(amax: Tensor, dtype: torch.dtype, power_of_two: bool) -> Tensor:
    """As `ao_core.numerics` finds the scale of a tensor with this largest magnitude."""
    high = torch.finfo(dtype).max
    scale = amax / torch.full_like(amax, high)
    scale = torch.where(scale.isfinite(), scale.clamp(min=TINY), torch.nan)
    return next_power_of_two(scale) if power_of_two else scale


@torch.no_grad()
def precompute_float8_dynamic_scale_for_fsdp(model: nn.Module) -> None:
    """Find the scales of all weights that FSDP2 gathers as codes, with one all-reduce.

    Call it behind each optimizer step. In front of the first forward pass it does nothing: FSDP2
    has not said yet over which ranks a weight is sharded, and the pass finds the scales. What was
    found is not used behind another step of an optimizer, or a change in place.

    ValueError for a model without such weights.
    """
    weights = []
    for module in model.modules():
        for parameter in module._parameters.values():
            local = getattr(parameter, "_local_tensor", None)
            if isinstance(local, ShardedWeight):
                weights.append(local)
    if not weights:
        raise ValueError(
            "the model has no weight that FSDP2 gathers as float8: convert it with "
            "Float8LinearConfig(enable_fsdp_float8_all_gather=True), then call fully_shard"
        )
    groups: dict[Any, list[ShardedWeight]] = {}
    for weight in weights:
        if weight.largest.group is not None:
            groups.setdefault(weight.largest.group, []).append(weight)
    for group, members in groups.items():
        largest = torch.stack([largest_magnitude(weight.plain) for weight in members])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        for weight, amax in zip(members, largest.unbind(), strict=True):
            weight.largest.set(amax)
