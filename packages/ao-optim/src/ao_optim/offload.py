"""An optimizer whose state, and if asked for whose gradients, live in the CPU's memory.

    parameter on the device  --gradient-->  pinned memory  -->  base optimizer on the CPU
                             <--new value-- copy of the parameter, pinned, which it changes

The weights on the device are the truth: a parameter that something else has changed (a checkpoint
that was loaded, say) is read anew before its next step. `ao_optim.transfers` has the copies;
docs/decisions/0021-offload.md says what was decided and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .gradients import as_groups, check_dense, check_optimizer_class, hook_gradients
from .quantized import QuantizedOptimizer
from .sharding import is_sharded, local_part, local_part_as, whole_like
from .total_norm import total_norm
from .transfers import Arrival, Transfers, transfers_of

__all__ = ["CPUOffloadOptimizer"]

LEAST_SCALE = 2.0**-20  # of gradients, that is applied to their factors instead of to them
BATCH = 64 << 20  # bytes of parameters that the base optimizer gets in one call


@dataclass(eq=False)
class _Lane:
    """A parameter, its copy on the CPU, and where its gradient is on its way."""

    parameter: Tensor
    host: nn.Parameter
    transfers: Transfers
    gradient: Tensor | None = None  # the part of this rank, on the CPU
    arrival: Arrival | None = None  # while a gradient waits for its step
    version: tuple[int, int] | None = None  # of the parameter when its copy was last the same
    hook: Any = field(default=None, repr=False)


class CPUOffloadOptimizer(Optimizer):
    """Runs any optimizer on copies of the parameters on the CPU.

        optimizer = CPUOffloadOptimizer(
            model.parameters(), AdamW8bit, offload_gradients=True, lr=1e-4
        )

    Args:
        params: parameters on CUDA devices, named parameters or groups of them. DTensors and FSDP2
            included. Frozen ones take no memory on the CPU until they get a gradient.
        optimizer_class: the base optimizer, which must treat each parameter alone, as all of
            torch.optim but LBFGS do. It is called for some parameters at a time.
        offload_gradients: move each gradient to the CPU as soon as backward has computed it, and
            free it on the device. Gradients of several backward passes are added up.
            `parameter.grad` is None then: clip with `optimizer.clip_grad_norm_`. Not under
            DistributedDataParallel, which averages gradients only later.
            False: gradients stay on the device until `step`, for GradScaler and others that read
            or change them.
        options: arguments of the base optimizer, such as lr. torch.optim.AdamW and Adam are fused
            unless `foreach` or `fused` says otherwise: their other steps take several times as long
            on a CPU.

    `param_groups`, `state`, `state_dict()` and `load_state_dict()` are those of the base optimizer,
    whose state dicts load here, and the other way round. Memory on the CPU, bytes a parameter: its
    own dtype twice (copy and gradient), pinned, which torch rounds up to a power of two a tensor;
    and the state of the base optimizer.

    The CPU's work overlaps with the device's backward pass: `step` may be called while the device
    still computes, as it is in a loop that does not look at losses before, and updates parameters
    in the order in which gradients arrive.

    Raises TypeError if `optimizer_class` is no optimizer, ValueError for LBFGS, NotImplementedError
    for devices but CPU and CUDA.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_class: type[Optimizer] = torch.optim.AdamW,
        *,
        offload_gradients: bool = False,
        **options: Any,  # of a class that is the caller's
    ) -> None:
        check_optimizer_class(optimizer_class)
        if optimizer_class in (torch.optim.AdamW, torch.optim.Adam) and "foreach" not in options:
            options.setdefault("fused", True)
        self.offload_gradients = offload_gradients
        self._transfers: dict[torch.device, Transfers] = {}
        self._lanes: dict[Tensor, _Lane] = {}
        self._waiting: dict[_Lane, None] = {}  # whose gradient is there, in the order of arrival
        self._scale = 1.0  # of the gradients, from clipping
        groups = [self._host_group(group) for group in as_groups(params)]
        self.base = optimizer_class([host for _, host in groups], **options)
        with_options = [
            {**base, "params": group["params"]}
            for (group, _), base in zip(groups, self.base.param_groups, strict=True)
        ]
        super().__init__(with_options, self.base.defaults)

    # --- groups and options

    def _host_group(self, group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A group with its parameters as a list, and the same with their copies on the CPU."""
        given = group["params"]
        if isinstance(given, set):
            raise TypeError("parameters in a set have no order: give a list")
        entries = [given] if isinstance(given, Tensor) else list(given)
        pairs = [entry if isinstance(entry, tuple) else (None, entry) for entry in entries]
        params = [parameter for _, parameter in pairs]
        hosts = [self._new_lane(parameter).host for parameter in params]
        named = [
            host if name is None else (name, host)
            for (name, _), host in zip(pairs, hosts, strict=True)
        ]
        return {**group, "params": params}, {**group, "params": named}

    def _new_lane(self, parameter: Tensor) -> _Lane:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters are tensors, got a {type(parameter).__name__}")
        if parameter in self._lanes:
            raise ValueError("a parameter is in the groups twice")
        part = local_part(parameter.detach())
        if part.device not in self._transfers:
            self._transfers[part.device] = transfers_of(part.device)
        transfers = self._transfers[part.device]
        # Memory that nothing writes takes no room: that of a frozen parameter
        ours = Transfers() if not parameter.requires_grad else transfers
        host = nn.Parameter(
            whole_like(ours.host_like(part), parameter),
            requires_grad=parameter.dtype.is_floating_point,
        )
        lane = _Lane(parameter, host, transfers)
        self._lanes[parameter] = lane
        if parameter.requires_grad:
            self._refresh(lane)
            self._register_hook(lane)
        return lane

    def _register_hook(self, lane: _Lane) -> None:
        if self.offload_gradients:
            lane.hook = hook_gradients(lane.parameter, self, type(self)._receive)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to this and to the base optimizer, as torch.optim does."""
        if len(self.param_groups) == len(self.base.param_groups):  # not from __init__
            before = set(self._lanes)
            try:
                group, host = self._host_group(param_group)
                self.base.add_param_group(host)
            except BaseException:
                for parameter in set(self._lanes) - before:
                    lane = self._lanes.pop(parameter)
                    if lane.hook is not None:
                        lane.hook.remove()
                raise
            param_group = {**self.base.param_groups[-1], "params": group["params"]}
        super().add_param_group(param_group)

    def _options(self) -> list[dict[str, Any]]:
        return [
            {name: _on_cpu(value) for name, value in group.items() if name != "params"}
            for group in self.param_groups
        ]

    def _give_options(self) -> None:
        """The base optimizer takes the options of the groups as they are now."""
        for base, options in zip(self.base.param_groups, self._options(), strict=True):
            base.update(options)

    # --- gradients

    def _receive(self, parameter: Tensor) -> None:
        """Backward has computed a gradient."""
        lane = self._lanes[parameter]
        if parameter.grad is None:
            return
        with torch.no_grad():
            self._take(lane)
            parameter.grad = None

    def _take(self, lane: _Lane) -> None:
        """Start moving `parameter.grad` to the CPU."""
        gradient = lane.parameter.grad
        assert gradient is not None
        check_dense(gradient)
        source = local_part_as(gradient.detach(), lane.parameter)
        self._refresh(lane)
        if lane.gradient is None:
            lane.gradient = lane.transfers.host_like(local_part(lane.parameter.detach()))
        add = self.offload_gradients and lane.arrival is not None
        lane.arrival = lane.transfers.fetch(
            source, lane.gradient, add=add, norm=True, foreign=is_sharded(gradient)
        )
        self._waiting[lane] = None

    def _refresh(self, lane: _Lane) -> None:
        """Read the parameter anew if its copy is not known to be the same."""
        if lane.version == version_of(lane.parameter):
            return
        part = local_part(lane.parameter.detach())
        if self._transfers.get(part.device) is not lane.transfers:
            raise RuntimeError(
                f"a parameter has moved to {part.device} since the optimizer was built: move the "
                "model first, then build the optimizer"
            )
        lane.transfers.fetch(part, local_part(lane.host.detach())).wait()
        lane.version = version_of(lane.parameter)

    def sync_from_model(self) -> None:
        """Read all parameters from the device anew, those without gradients at their next one.

        Needed only if weights were changed behind autograd's back, by way of `.data`: changes that
        torch counts (load_state_dict, copy_ under no_grad) are seen.
        """
        for lane in self._lanes.values():
            lane.version = None
            if lane.parameter.requires_grad:
                self._refresh(lane)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those on the CPU included."""
        for lane in self._waiting:
            lane.arrival = None
        self._waiting.clear()
        self._scale = 1.0
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
    ) -> Tensor:
        """torch.nn.utils.clip_grad_norm_ over the gradients of all groups, wherever they are.

        Returns the norm before clipping, 0-d, in float32 where gradients were offloaded. They are
        scaled when `step` uses them. It waits for all gradients. RuntimeError for a norm that is
        not finite if error_if_nonfinite.
        """
        if not self.offload_gradients:
            params = [parameter for parameter in self._lanes if parameter.grad is not None]
            return nn.utils.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite)
        self._collect()
        parts = []
        for lane in self._waiting:
            assert lane.arrival is not None and lane.gradient is not None
            lane.arrival.wait()
            if norm_type == 2.0:
                assert lane.arrival.norm is not None
                parts.append((lane.parameter, lane.arrival.norm))
            else:
                norm = torch.linalg.vector_norm(lane.gradient, norm_type, dtype=torch.float32)
                parts.append((lane.parameter, norm))
        total = total_norm(parts, norm_type=norm_type) * self._scale
        if error_if_nonfinite and not total.isfinite():
            raise RuntimeError(
                f"the total norm of order {norm_type} of the gradients is {total.item()}: not "
                "clipped. Use error_if_nonfinite=False to clip all the same"
            )
        self._scale *= (max_norm / (total + 1e-6)).clamp(max=1.0).item()
        return total

    # --- steps

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what the closure returns.

        The CPU has finished when this returns, copies to the device may be under way: what the
        device is asked for next waits for them.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._give_options()
        self._collect()
        marks = {each: each.mark() for each in self._transfers.values()}
        try:
            with self._scale_in_base():
                for batch in _batches(list(self._waiting)):
                    self._update(batch, marks)
        finally:  # copies of batches before an error are under way
            for transfers in self._transfers.values():
                transfers.join()
        self._waiting.clear()
        self._scale = 1.0
        self._link_state()
        return loss

    def _collect(self) -> None:
        """Take gradients that no hook took: all, if they stay on the device."""
        for lane in self._lanes.values():
            if lane.parameter.grad is not None:
                self._take(lane)
                if self.offload_gradients:
                    lane.parameter.grad = None
            if lane.parameter.requires_grad and lane.hook is None:
                self._register_hook(lane)  # not frozen any more

    @contextlib.contextmanager
    def _scale_in_base(self) -> Iterator[None]:
        """Leave the scale of gradients to the base optimizer if it can: else it is a pass over them
        that moves as many bytes as half a step. Squares of gradients must not overflow before."""
        base = self.base
        if (
            not isinstance(base, QuantizedOptimizer)
            or not base._scales_gradients()
            or not self._scale >= LEAST_SCALE
        ):
            yield
            return
        base._gradient_scale, self._scale = self._scale, 1.0
        try:
            yield
        finally:
            base._gradient_scale, self._scale = 1.0, base._gradient_scale

    def _update(self, batch: list[_Lane], marks: dict[Transfers, Any]) -> None:
        """One call of the base optimizer for the parameters of a batch; starts to copy them back.

        What the batch's copies are read for has happened: their gradients came after it.
        """
        for lane in batch:
            assert lane.arrival is not None and lane.gradient is not None
            lane.arrival.wait()
            lane.arrival = None
            if self._scale != 1.0:
                lane.gradient *= self._scale
            lane.host.grad = whole_like(lane.gradient, lane.parameter)
        try:
            self.base.step()
        finally:
            for lane in batch:
                lane.host.grad = None
        for lane in batch:
            part = local_part(lane.parameter.detach())
            lane.transfers.send(local_part(lane.host.detach()), part, after=marks[lane.transfers])
            lane.version = version_of(lane.parameter)

    # --- state

    def _link_state(self) -> None:
        for parameter, lane in self._lanes.items():
            if lane.host in self.base.state:
                self.state[parameter] = self.base.state[lane.host]

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer, on the CPU; the base optimizer itself loads it, too."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        self._give_options()
        state_dict = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` of this or of the base optimizer gave; the base optimizer checks
        it. Weights are not part of it: the model loads them."""
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._give_options()
        self.base.load_state_dict(state_dict)
        for group, base in zip(self.param_groups, self.base.param_groups, strict=True):
            group.update({name: value for name, value in base.items() if name != "params"})
        self.state.clear()
        self._link_state()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("CPUOffloadOptimizer is not pickled or copied: save its state_dict()")


def version_of(parameter: Tensor) -> tuple[int, int]:
    """It changes with each change in place that torch counts, of a DTensor or of its part."""
    return parameter._version, getattr(parameter, "_local_tensor", parameter)._version


def _nbytes(lane: _Lane) -> int:
    return local_part(lane.host.detach()).nbytes


def _batches(lanes: list[_Lane]) -> list[list[_Lane]]:
    batches: list[list[_Lane]] = []
    size = BATCH
    for lane in lanes:
        if size >= BATCH:
            batches.append([])
            size = 0
        batches[-1].append(lane)
        size += _nbytes(lane)
    return batches


def _on_cpu(value: Any) -> Any:
    """An option as the base optimizer gets it: tensors as they are now, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple):
        return tuple(_on_cpu(each) for each in value)
    return value
