"""Collectives on quantized tensors, field by field: what distribute_tensor, DTensor and
full_tensor() call.

Codes travel as they are stored, so a shard costs its quantized size on the wire.
"""

from typing import Any

import torch
import torch.distributed as dist

from .tensor import QTensor
from .tensor_ops import bits

__all__: list[str] = []


if dist.is_available():
    c10d, functional = torch.ops.c10d, torch.ops._c10d_functional

    # Both are asked for a work, whatever the caller wants: without one, NCCL gives a null pointer,
    # whose wait() ends the process.

    @QTensor.implements(c10d.scatter_.default)
    def _scatter_(
        outputs: list[QTensor],
        inputs: list[list[QTensor]],
        group: Any,
        root: int,
        async_op: bool = True,
        timeout: int = -1,
    ) -> Any:
        work: Any = None
        for name, out in outputs[0].tensors().items():
            parts = [[bits(part.tensors()[name].contiguous()) for part in each] for each in inputs]
            _, work = c10d.scatter_.default([bits(out)], parts, group, root, True, timeout)
            work.wait()  # the caller waits for one work only, and gloo runs several at a time
        return outputs, work

    @QTensor.implements(c10d.broadcast_.default)
    def _broadcast_(
        tensors: list[QTensor],
        group: Any,
        root: int,
        root_tensor: int,
        async_op: bool = True,
        timeout: int = -1,
    ) -> Any:
        work: Any = None
        for t in tensors[0].tensors().values():
            _, work = c10d.broadcast_.default([bits(t)], group, root, root_tensor, True, timeout)
            work.wait()
        return tensors, work

    def _gathered(t: torch.Tensor, group_size: int, group_name: str) -> torch.Tensor:
        """Waits at once: DTensor joins what it gathered along a later dimension without waiting,
        because a tensor subclass is never wrapped as an asynchronous result."""
        sent = bits(t.contiguous())
        out = functional.all_gather_into_tensor.default(sent, group_size, group_name)
        return functional.wait_tensor.default(out).view(t.dtype)

    @QTensor.implements(functional.all_gather_into_tensor.default)
    def _all_gather_into_tensor(q: QTensor, group_size: int, group_name: str) -> QTensor:
        """Every rank's tensor, one after the other along the first dimension."""
        rules = {name: dims[0] for name, dims in q.field_layout().items()}
        fields = {
            name: t if rules[name] is None else _gathered(t, group_size, group_name)
            for name, t in q.tensors().items()
        }
        length = q.shape[0]
        if all(length % (r if isinstance(r, int) else 1) == 0 for r in rules.values()):
            return q.rebuild(shape=torch.Size([length * group_size, *q.shape[1:]]), **fields)
        # the ranks hold parts of one block: joining them says whether they fit together
        parts = {
            name: [t] * group_size if rules[name] is None else t.chunk(group_size)
            for name, t in fields.items()
        }
        joined: Any = torch.cat(
            [
                q.rebuild(**{name: each[rank] for name, each in parts.items()})
                for rank in range(group_size)
            ]
        )
        return joined

    @QTensor.implements(functional.broadcast.default)
    def _broadcast(q: QTensor, root: int, group_name: str) -> QTensor:
        return q.map(
            lambda t: functional.wait_tensor.default(
                functional.broadcast.default(bits(t), root, group_name)
            ).view(t.dtype)
        )

    # the second is what funcol of torch 2.13 calls instead of an async wrapper; it is defined
    # together with funcol itself
    @QTensor.implements(
        functional.wait_tensor.default, "_c10d_functional._wrap_tensor_autograd.default"
    )
    def _wait_tensor(q: QTensor) -> QTensor:
        return q.map(functional.wait_tensor.default)
