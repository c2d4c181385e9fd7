"""An optimizer whose state lives in the CPU's memory and visits the device for its step.

    pinned memory  --state-->  base optimizer on the device, some parameters at a time
                   <--state--

Nothing is computed on the CPU. With 8 bits a parameter's state is 2 bytes up and 2 down: as much
as a gradient down and a new weight up, which an optimizer on the CPU copies; at 50 GB/s in each
direction at once a thousand million parameters take 41 ms, with 4 bits 21. In backward that is
hidden behind what the device computes. docs/decisions/0021-offload.md has the comparison.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradients import as_groups, check_dense, check_optimizer_class, hook_gradients
from .sharding import local_part, with_local
from .transfers import Transfers, transfers_of

__all__ = ["StateOffloadOptimizer"]

BATCH = 64 << 20  # bytes of parameters that the base optimizer gets in one call
AHEAD = 256 << 20  # bytes of gradients and state on the device that wait for their step


class _Visit(NamedTuple):
    """A parameter whose state is on its way to the device."""

    parameter: Tensor
    gradient: Tensor
    state: dict[str, tuple[Tensor, Any]]  # what the record will hold, and its event
    owner: Any  # the stream that the memory belongs to
    mark: Any  # behind the gradient
    n_bytes: int


class StateOffloadOptimizer(Optimizer):
    """Runs any optimizer on the device, and keeps its state on the CPU between steps.

        optimizer = StateOffloadOptimizer(
            model.parameters(), AdamW8bit, step_in_backward=True, lr=1e-4
        )

    Args:
        params: parameters on CUDA devices, named parameters or groups of them. DTensors and FSDP2
            included.
        optimizer_class: the base optimizer, which must treat each parameter alone, as all of
            torch.optim but LBFGS do. It is called for some parameters at a time. Low-bit state has
            the least to copy.
        step_in_backward: update parameters as backward computes their gradients, which are freed
            at once; `parameter.grad` is None then. `step` updates the last ones. There is one
            backward a step and no clipping, and options of the groups change only between `step`
            and backward; else RuntimeError. Not under DistributedDataParallel, which averages
            gradients only later.
            False: `step` updates all, and gradients stay on the device.
        options: arguments of the base optimizer, such as lr.

    `param_groups`, `state`, `state_dict()` and `load_state_dict()` are those of the base optimizer,
    whose state dicts load here, and the other way round: steps are the same bits. Between steps
    `state` holds pinned tensors of the CPU. `load_state_dict` takes the state through the device.

    Raises TypeError if `optimizer_class` is no optimizer, ValueError for LBFGS, NotImplementedError
    for devices but CPU and CUDA.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_class: type[Optimizer] = torch.optim.AdamW,
        *,
        step_in_backward: bool = False,
        **options: Any,  # of a class that is the caller's
    ) -> None:
        check_optimizer_class(optimizer_class)
        self.step_in_backward = step_in_backward
        self._transfers: dict[torch.device, Transfers] = {}
        self._homes: dict[Tensor, Transfers] = {}
        self._pinned: dict[tuple[Tensor, str], Tensor] = {}
        self._gone: dict[Tensor, Any] = {}  # the event behind which a record is on the CPU
        self._queue: deque[_Visit] = deque()
        self._queued = 0
        self._stepped: set[Tensor] = set()  # in this backward
        self._begun: list[dict[str, Any]] = []  # the options then
        self._hooks: dict[Tensor, Any] = {}
        self.base = optimizer_class(as_groups(params), **options)
        for group in self.base.param_groups:
            for parameter in group["params"]:
                self._prepare(parameter)
        groups = [dict(group) for group in self.base.param_groups]
        super().__init__(groups, self.base.defaults)
        self._share()

    def _share(self) -> None:
        """Groups and state are the base optimizer's own."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _prepare(self, parameter: Tensor) -> None:
        if parameter not in self._homes:
            device = local_part(parameter.detach()).device
            if device not in self._transfers:
                self._transfers[device] = transfers_of(device)
            self._homes[parameter] = self._transfers[device]
        if self.step_in_backward and parameter.requires_grad and parameter not in self._hooks:
            self._hooks[parameter] = hook_gradients(parameter, self, type(self)._receive)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does."""
        if len(self.param_groups) < len(self.base.param_groups):  # from __init__
            super().add_param_group(param_group)
            return
        self.base.add_param_group(param_group)
        for parameter in self.base.param_groups[-1]["params"]:
            self._prepare(parameter)

    # --- visits

    def _receive(self, parameter: Tensor) -> None:
        """Backward has computed a gradient."""
        gradient = parameter.grad
        if gradient is None:
            return
        parameter.grad = None
        if parameter in self._stepped:
            raise RuntimeError(
                "a parameter got a second gradient before step(): with step_in_backward=True "
                "there is one backward a step. Use step_in_backward=False to add up gradients"
            )
        if not self._stepped:
            self._begun = self._options()
        with torch.no_grad():
            self._invite(parameter, gradient)

    def _invite(self, parameter: Tensor, gradient: Tensor) -> None:
        """Start to copy the state; steps with those before it, if too much is on its way."""
        check_dense(gradient)
        self._stepped.add(parameter)
        transfers, n_bytes = self._homes[parameter], local_part(gradient).nbytes
        state = {}
        for key, value in self.base.state.get(parameter, {}).items():
            if (parameter, key) in self._pinned:
                on_device, event = transfers.bring(
                    self._pinned[parameter, key], after=self._gone.get(parameter)
                )
                state[key] = (with_local(value, on_device), event)
                n_bytes += on_device.nbytes
        visit = _Visit(parameter, gradient, state, transfers.stream(), transfers.mark(), n_bytes)
        self._queue.append(visit)
        self._queued += n_bytes
        while self._queued > AHEAD and len(self._queue) > 1:
            self._update()

    def _update(self) -> None:
        """One call of the base optimizer for the oldest visits; their state goes back."""
        batch, size = [], 0
        while self._queue and size < BATCH:
            batch.append(self._queue.popleft())
            self._queued -= batch[-1].n_bytes
            size += local_part(batch[-1].gradient).nbytes
        for parameter, gradient, state, owner, mark, _ in batch:
            transfers = self._homes[parameter]
            transfers.depend(mark)
            if owner is not None and owner != transfers.stream():
                local_part(gradient).record_stream(transfers.stream())
            parameter.grad = gradient
            for key, (value, event) in state.items():
                transfers.depend(event)
                self.base.state[parameter][key] = value
        try:
            self.base.step()
        finally:
            for visit in batch:
                visit.parameter.grad = None
        for visit in batch:
            self._send_home(visit.parameter, visit.owner if visit.state else None)

    def _send_home(self, parameter: Tensor, owner: Any) -> None:
        """Replace the tensors of a record that are on the device by copies on the CPU."""
        transfers, record = self._homes[parameter], self.base.state.get(parameter, {})
        for key, value in list(record.items()):
            part = local_part(value) if isinstance(value, Tensor) else None
            if part is None or part.device.type == "cpu":
                continue
            host = self._pinned.get((parameter, key))
            if host is None or (host.shape, host.dtype) != (part.shape, part.dtype):
                host = self._pinned[parameter, key] = transfers.host_like(part)
            self._gone[parameter] = transfers.fetch(part, host, owner=owner).done
            record[key] = with_local(value, host)

    # --- steps

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns what the closure returns. Nothing is
        waited for but by what the device is asked for next."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.step_in_backward and self._stepped:
            self._check_options()
        left = {p: p.grad for group in self.param_groups for p in group["params"]}
        left = {p: gradient for p, gradient in left.items() if gradient is not None}
        for gradient in left.values():
            check_dense(gradient)
        for parameter in left:
            parameter.grad = None
        for parameter, gradient in left.items():
            self._invite(parameter, gradient)
        while self._queue:
            self._update()
        if not self.step_in_backward:
            for parameter, gradient in left.items():
                parameter.grad = gradient
        self._stepped.clear()
        for transfers in self._transfers.values():
            transfers.join()
        for group in self.param_groups:
            for parameter in group["params"]:
                self._prepare(parameter)  # may not be frozen any more
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch.optim has it. RuntimeError if parameters were updated by step_in_backward with
        the gradients already."""
        if self._stepped:
            raise RuntimeError(
                "zero_grad() before step(): with step_in_backward=True parameters have been "
                "updated already. Call step() first, or use step_in_backward=False"
            )
        super().zero_grad(set_to_none)

    def _options(self) -> list[dict[str, Any]]:
        return [
            {name: _kept(value) for name, value in group.items() if name != "params"}
            for group in self.param_groups
        ]

    def _check_options(self) -> None:
        for number, (then, now) in enumerate(zip(self._begun, self._options(), strict=True)):
            changed = [name for name, value in now.items() if not _same(then.get(name), value)]
            if changed:
                raise RuntimeError(
                    f"{', '.join(changed)} of group {number} changed between backward and step(): "
                    "with step_in_backward=True parameters were updated with the old value. "
                    "Change options before backward"
                )

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer, with tensors on the CPU; the base optimizer itself loads it,
        too. RuntimeError between backward and step, where it is that of neither step."""
        if self._stepped:
            raise RuntimeError("state_dict() between backward and step(): call step() first")
        for transfers in self._transfers.values():
            transfers.finish()
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self.base.state_dict()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            changed = post_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` of this or of the base optimizer gave; the base optimizer checks
        it."""
        if self._stepped:
            raise RuntimeError("load_state_dict() between backward and step(): call step() first")
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        for transfers in self._transfers.values():
            transfers.finish()
        self.base.load_state_dict(state_dict)
        self._share()
        self._pinned.clear()  # what was loaded may still be read from there
        for group in self.param_groups:
            for parameter in group["params"]:
                self._send_home(parameter, None)
        for transfers in self._transfers.values():
            transfers.join()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("StateOffloadOptimizer is not pickled or copied: save its state_dict()")


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return a is b or bool(a == b)
