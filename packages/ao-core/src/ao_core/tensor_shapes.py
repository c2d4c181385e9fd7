"""Shapes of a QTensor: transposed, viewed, padded, made anew. Cuts are in `tensor_ops`."""

from typing import Any

import torch

from .errors import UnsupportedOpError
from .tensor import QTensor
from .tensor_ops import EACH, select, stored_size

__all__: list[str] = []

aten = torch.ops.aten


@QTensor.implements(aten.t.default, aliasing=True)
def _t(q: QTensor) -> QTensor:
    return _transpose(q, 0, 1)


@QTensor.implements(aten.transpose.int, aliasing=True)
def _transpose(q: QTensor, a: int, b: int) -> QTensor:
    a, b = sorted((a % q.dim(), b % q.dim()))
    if a == b:
        return q.map(lambda t: t)
    if (a, b) != (q.dim() - 2, q.dim() - 1):
        raise UnsupportedOpError(
            f"{type(q).__name__}: only the last two dimensions can be swapped; call .dequantize() "
            f"first"
        )
    shape = torch.Size([*q.shape[:-2], q.shape[-1], q.shape[-2]])
    return q.rebuild(shape=shape, transposed=not q.transposed)


@QTensor.implements(aten.permute.default, aliasing=True)
def _permute(q: QTensor, order: list[int]) -> QTensor:
    order, plain = [d % q.dim() for d in order], list(range(q.dim()))
    if order == plain:
        return q.map(lambda t: t)
    if order == [*plain[:-2], plain[-1], plain[-2]]:
        return _transpose(q, -2, -1)
    raise UnsupportedOpError(
        f"{type(q).__name__}: only the last two dimensions can be swapped; call .dequantize() first"
    )


@QTensor.implements(aten.unsqueeze.default, aliasing=True)
def _unsqueeze(q: QTensor, dim: int) -> QTensor:
    dim = dim % (q.dim() + 1)
    if dim > q.dim() - 2:
        raise UnsupportedOpError(
            f"{type(q).__name__}: unsqueeze adds leading dimensions only; call .dequantize() first"
        )
    return q.map(lambda t: t.unsqueeze(dim), shape=torch.Size([*q.shape[:dim], 1, *q.shape[dim:]]))


@QTensor.implements(aten.squeeze.dim, aliasing=True)
def _squeeze(q: QTensor, dim: int) -> QTensor:
    dim = dim % q.dim()
    if dim < q.dim() - 2 and q.shape[dim] == 1:
        return select(q, dim, 0)
    return q.map(lambda t: t)


@QTensor.implements(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aliasing=True
)
def _view(q: QTensor, shape: list[int]) -> QTensor:
    shape = _resolve(q, list(shape))
    if shape == list(q.shape):
        return q.map(lambda t: t)
    keep = q.field_layout()
    rows = all(d in EACH for dims in keep.values() for d in dims[:-1])
    if (
        not q.transposed
        and shape[-1:] == list(q.shape[-1:])
        and rows
        and not any(None in d[:-1] for d in keep.values())
    ):
        return q.map(lambda t: t.reshape(*shape[:-1], t.shape[-1]), shape=torch.Size(shape))
    if len(shape) == 1 and not q.transposed:  # FSDP2's handle of a shard, which it views back
        return q.map(lambda t: t.reshape(-1), shape=torch.Size(shape))
    raise UnsupportedOpError(
        f"{type(q).__name__} of shape {tuple(q.shape)} cannot be viewed as {tuple(shape)}; call "
        f".dequantize() first"
    )


def _resolve(q: QTensor, shape: list[int]) -> list[int]:
    if -1 in shape:
        rest = 1
        for n in shape:
            rest *= n if n != -1 else 1
        shape[shape.index(-1)] = q.numel() // max(rest, 1)
    return shape


@QTensor.implements(aten.as_strided.default)
def _as_strided(q: QTensor, size: list[int], stride: list[int], offset: Any = None) -> QTensor:
    if (
        tuple(size) != tuple(q.shape)
        or tuple(stride) != tuple(q.stride())
        or offset not in (None, 0)
    ):
        raise UnsupportedOpError(
            f"as_strided of a {type(q).__name__} can only restate its own shape and strides"
        )
    return q.map(lambda t: t)


@QTensor.implements(aten.constant_pad_nd.default)
def _constant_pad_nd(q: QTensor, pad: list[int], value: float = 0) -> QTensor:
    """Longer at the ends, as DTensor makes shards equal before it sends them; what is added has
    codes and scales of zero, and is cut off again by the receiver."""
    if value != 0 or any(pad[::2]) or min(pad, default=0) < 0 or q.transposed:
        raise UnsupportedOpError(
            f"a {type(q).__name__} is padded with zeros and at the ends only, got {list(pad)} and "
            f"{value}; call .dequantize() first"
        )
    size = list(q.shape)
    for distance, extra in enumerate(pad[1::2]):
        size[-1 - distance] += extra
    padded = _new_zeros(q, size)
    for name, t in q.tensors().items():
        space = padded.__dict__[name]
        for dim, n in enumerate(t.shape):
            space = space.narrow(dim, 0, n)
        space.copy_(t)
    return padded


@QTensor.implements(aten.new_zeros.default, aten.new_empty.default)
def _new_zeros(
    q: QTensor, size: list[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> QTensor:
    """A tensor of the same format and another shape; its codes are all zero until they are copied
    over. Of size [0], as FSDP2 makes for a rank that gets nothing, it has no rows."""
    if list(size) == [0] and not q.transposed:
        return q.map(lambda t: t.new_zeros(0, *t.shape[1:]), shape=torch.Size(size))
    if len(size) != q.dim() or q.transposed:
        raise UnsupportedOpError(
            f"new_zeros of a {type(q).__name__} keeps the number of dimensions ({q.dim()}), got "
            f"size {list(size)}"
        )
    fields = {}
    for name, dims in q.field_layout().items():
        t = q.__dict__[name]
        shape = [stored_size(n, d) for n, d in zip(size, dims, strict=True)]
        fields[name] = t.new_zeros(shape, device=device)
    return q.rebuild(shape=torch.Size(size), dtype=dtype or q.dtype, **fields)
