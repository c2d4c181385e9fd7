"""FSDP2's all-gather of quantized weights: what a rank sends, and the weight from what all sent.

Where the ranks divide the output features, the stored fields themselves are sent, so a shard
travels at its quantized size. Where they do not, FSDP2 takes only inputs of the size of the largest
shard, (R, ...) for R = ceil(N / ranks): the fields are then packed into one tensor of that size,
whose elements are as wide as their bytes need: 1 byte for codes of up to 4 bits, 2 for those of 8.
Neither gloo nor NCCL knows integers of 2 bytes, so those are float16, and hold 12 bits each: never
those of a NaN, which CUDA's copies of several tensors do not keep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import UnsupportedOpError

if TYPE_CHECKING:
    from .tensor import Dim, QTensor

__all__ = ["gather_inputs", "gathered_weight"]

# What travels, and the bits of data in an element.
DTYPES = {torch.uint8: 8, torch.float16: 12, torch.int32: 32, torch.int64: 64}
ALIGNMENT = 16  # bytes, of a field in what is sent


def gather_inputs(q: QTensor, ranks: int, outer_size: Any) -> tuple[tuple[Tensor, ...], Any]:
    """The tensors that this rank sends, and what `gathered_weight` needs to know.

    q: this rank's part of a weight of shape `outer_size`, split over the first dimension.
    """
    shape = torch.Size(outer_size or ())
    if shape and shape[0] % ranks:
        return (_packed(q, ranks, shape),), (shape, ranks)
    return tuple(q.tensors().values()), (shape, 0)


def gathered_weight(
    q: QTensor, gathered: tuple[Tensor, ...], metadata: Any, out: QTensor | None
) -> tuple[QTensor, tuple[Tensor, ...]] | None:
    """The whole weight and the tensors that it lives in; None where it was put into `out`, a weight
    that an earlier call gave."""
    shape, ranks = metadata
    if not ranks:
        if out is not None:  # its fields are what was gathered
            return None
        fields = dict(zip(q.tensors(), gathered, strict=True))
        fields |= {name: fields[name][:1] for name in _shared(q, shape)}
        return q.rebuild(shape=shape or q.shape, **fields), gathered
    fields = _unpacked(q, gathered[0], ranks, shape)
    if out is None:
        return q.rebuild(shape=shape, **fields), tuple(fields.values())
    for name, t in fields.items():
        out.tensors()[name].copy_(t)
    return None


def _shared(q: QTensor, shape: torch.Size) -> set[str]:
    """The fields with one value for all ranks: of the whole dimension, or of its only block."""
    return {
        name
        for name, dims in q.field_layout().items()
        if dims[0] is None or (isinstance(dims[0], int) and shape and 1 < shape[0] <= dims[0])
    }


def _rows(n: int, rule: Dim) -> int:
    """Rows of a field of a shard of n output features."""
    if rule is None:
        return 1
    logical, stored = rule if isinstance(rule, tuple) else (rule, 1)
    return -(-n // logical) * stored


def _places(q: QTensor, largest: int) -> tuple[dict[str, int], int]:
    """Where each field of the largest shard begins in the bytes that are sent, and their number."""
    places, end = {}, 0
    for name, dims in q.field_layout().items():
        t = q.tensors()[name]
        places[name] = end
        size = _rows(largest, dims[0]) * math.prod(t.shape[1:]) * t.element_size()
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


def _packed(q: QTensor, ranks: int, shape: torch.Size) -> Tensor:
    largest = -(-shape[0] // ranks)
    places, needed = _places(q, largest)
    slots = largest * math.prod(shape[1:])
    dtype = next((dtype for dtype, bits in DTYPES.items() if bits * slots // 8 >= needed), None)
    if dtype is None:
        raise UnsupportedOpError(
            f"FSDP2 gathers a {type(q).__name__} of shape {tuple(shape)} over {ranks} ranks, which "
            f"do not divide its output features, in elements of up to 8 bytes; it needs "
            f"{needed / slots:.1f}. Keep this layer out of fully_shard (its ignored_params), or in "
            f"float"
        )
    sent = torch.zeros(DTYPES[dtype] * slots // 8, dtype=torch.uint8, device=q.device)
    for name, t in q.tensors().items():
        data = t.contiguous().view(torch.uint8).flatten()
        sent[places[name] : places[name] + data.numel()].copy_(data)
    sent = _halves(sent, slots) if dtype == torch.float16 else sent.view(dtype)
    return sent.view(largest, *shape[1:])


def _halves(data: Tensor, n: int) -> Tensor:
    """n finite float16 that hold n + n // 2 bytes: one each, and half of one above it."""
    low, more = data[:n], data[n:]
    high = torch.zeros_like(low)
    high[: 2 * len(more)] = torch.stack((more & 15, more >> 4), 1).flatten()
    return (low.to(torch.int16) | (high.to(torch.int16) << 8)).view(torch.float16)


def _bytes(halves: Tensor) -> Tensor:
    """(ranks, bytes) of (ranks, n) such float16."""
    both = halves.view(torch.int16)
    high = (both >> 8)[:, : both.shape[1] // 2 * 2].unflatten(1, (-1, 2))
    more = high[..., 0] | (high[..., 1] << 4)
    return torch.cat((both & 255, more), 1).to(torch.uint8)


def _unpacked(q: QTensor, gathered: Tensor, ranks: int, shape: torch.Size) -> dict[str, Tensor]:
    largest = -(-shape[0] // ranks)
    places, _ = _places(q, largest)
    received = gathered.contiguous().view(ranks, -1)
    half = received.dtype == torch.float16
    received = _bytes(received) if half else received.view(torch.uint8)
    rules, shared, fields = q.field_layout(), _shared(q, shape), {}
    for name, t in q.tensors().items():
        parts = []
        for rank in range(1 if name in shared else ranks):
            n = max(0, min(largest, shape[0] - rank * largest))
            size = (_rows(n, rules[name][0]), *t.shape[1:])
            end = places[name] + math.prod(size) * t.element_size()
            parts.append(received[rank, places[name] : end].view(t.dtype).view(size))
        fields[name] = torch.cat([part.view(torch.uint8) for part in parts]).view(t.dtype)
    return fields
