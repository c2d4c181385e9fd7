"""The ordinary tensor operations of every QTensor, in terms of its fields and `field_layout()`.

Views speak logical coordinates. A cut must fall between blocks (or inside one block that nothing
else shares), because a block's scale cannot be split; anything else is refused with the coordinates
that would work.
"""

from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedOpError
from .tensor import Dim, QTensor

__all__ = ["EACH", "bits", "select", "stored_size"]

aten = torch.ops.aten


def bits(t: Tensor) -> Tensor:
    """float8 as uint8, because comparisons, gathers and collectives do not know float8 on every
    device; anything else as it is."""
    return t.view(torch.uint8) if t.is_floating_point() and t.element_size() == 1 else t


# --- copies and moves


@QTensor.implements(aten.detach.default, aten.alias.default, aliasing=True)
def _detach(q: QTensor) -> QTensor:
    return q.map(lambda t: t.detach())


@QTensor.implements(aten.clone.default)
def _clone(q: QTensor, *, memory_format: Any = None) -> QTensor:
    return q.map(lambda t: t.clone())


@QTensor.implements(aten.contiguous.default)
def _contiguous(q: QTensor, *, memory_format: Any = None) -> QTensor:
    return q.map(lambda t: t.contiguous())


@QTensor.implements(aten._to_copy.default)
def _to_copy(
    q: QTensor, *, dtype: Any = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> QTensor:
    """Moves the fields; a dtype changes what the tensor stands for (dequantize's dtype), not what
    is stored."""
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(
            f"{type(q).__name__} stands for a float weight and cannot become {dtype}; "
            "call .dequantize() first"
        )
    moved = q.map(lambda t: t.to(device=device, non_blocking=non_blocking, copy=True))
    return moved.rebuild(dtype=dtype) if dtype is not None else moved


@QTensor.implements(aten._pin_memory.default)
def _pin_memory(q: QTensor, device: Any = None) -> QTensor:
    return q.map(lambda t: t.pin_memory())


@QTensor.implements(aten.is_pinned.default)
def _is_pinned(q: QTensor, device: Any = None) -> bool:
    return all(t.is_pinned() for t in q.tensors().values())


@QTensor.implements(aten.empty_like.default)
def _empty_like(q: QTensor, *, dtype: Any = None, device: Any = None, **_: Any) -> QTensor:
    return q.map(lambda t: torch.empty_like(t, device=device), dtype=dtype or q.dtype)


@QTensor.implements(aten.copy_.default)
def _copy_(q: QTensor, source: Tensor, non_blocking: bool = False) -> QTensor:
    """Codes from a tensor of the same format and shape; a float source is quantized with this
    tensor's options."""
    if not isinstance(q, QTensor):
        raise TypeError(
            f"cannot copy a {type(source).__name__} into a plain tensor; call .dequantize() first"
        )
    if not isinstance(source, QTensor):
        source = q.requantize(source.to(device=q.device).expand(q.shape))
    ours, theirs = q.tensors(), source.tensors()
    same = type(q) is type(source) and q.shape == source.shape and q.metadata() == source.metadata()
    if not same or {k: t.shape for k, t in ours.items()} != {k: t.shape for k, t in theirs.items()}:
        raise ValueError(f"copy_: formats differ: cannot copy\n  {source!r}\ninto\n  {q!r}")
    for name, t in ours.items():
        t.copy_(theirs[name], non_blocking=non_blocking)
    return q


@QTensor.implements(Tensor.data.__set__)  # type: ignore[attr-defined]
def _set_data(q: QTensor, source: Tensor) -> None:
    if type(q) is not type(source) or q.shape != source.shape:
        raise TypeError(
            f".data of {q!r} takes a tensor of the same format and shape, got {source!r}"
        )
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.data.__set__(q, source.detach())  # type: ignore[attr-defined]
    q.__dict__.update({k: source.__dict__[k] for k in (*q._data, *q._meta, "_flat")})


@QTensor.implements(torch._has_compatible_shallow_copy_type)
def _has_compatible_shallow_copy_type(q: Tensor, other: Tensor) -> bool:
    return False  # modules swap parameters instead, which keeps fields and wrapper together


@QTensor.implements(aten.equal.default)
def _equal(a: QTensor, b: Tensor) -> bool:
    if type(a) is not type(b) or a.shape != b.shape or a.metadata() != b.metadata():
        return False
    ours, theirs = a.tensors(), b.tensors()
    return set(ours) == set(theirs) and all(
        t.dtype == theirs[k].dtype and torch.equal(bits(t), bits(theirs[k]))
        for k, t in ours.items()
    )


@QTensor.implements(aten._assert_tensor_metadata.default)
def _assert_tensor_metadata(
    q: QTensor, size: Any = None, stride: Any = None, dtype: Any = None, **_: Any
) -> None:
    """What exported programs check before a conversion."""
    assert dtype in (None, q.dtype), f"expected {dtype}, got {q.dtype}"


@QTensor.implements(torch.allclose)
def _allclose(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> bool:
    a, b = (t.dequantize() if isinstance(t, QTensor) else t for t in (a, b))
    return torch.allclose(a, b, *args, **kwargs)


@QTensor.implements(Tensor.data_ptr)
def _data_ptr(q: QTensor) -> int:
    """Where the first field is: tells tensors apart, as for plain ones, though nothing of `q`'s
    dtype is there."""
    return q.__dict__[q._data[0]].data_ptr()


@QTensor.implements(Tensor.storage)
def _storage(q: QTensor) -> None:
    """What a program asks for that is about to write plain tensors: the only way to tell it more
    than an address."""
    raise TypeError(
        f"a {type(q).__name__} has no storage of its own, its fields have: "
        "it cannot be saved as a plain tensor. "
        "Use ao_core.checkpoint.save; or, before save_pretrained, ao_hf.attach(model, config)"
    )


@QTensor.implements(Tensor.nbytes.__get__)  # type: ignore[attr-defined]
def _nbytes(q: QTensor) -> int:
    return sum(t.nbytes for t in q.tensors().values())


# --- cuts

EACH = (None, 1, (1, 1))  # dimensions whose indices can be taken one by one


def stored_size(size: int, rule: Dim) -> int:
    """Stored elements of a field along a dimension of `size` logical ones."""
    if rule is None:
        return 1
    logical, stored = rule if isinstance(rule, tuple) else (rule, 1)
    return -(-size // logical) * stored


def _canonical(q: QTensor, dim: int) -> tuple[int, int]:
    """A dimension as the caller sees it, and as the fields have it."""
    dim = dim % q.dim()
    if q.transposed and dim >= q.dim() - 2:
        return dim, 2 * q.dim() - 3 - dim
    return dim, dim


def _cut(q: QTensor, dim: int, start: int, stop: int) -> QTensor:
    """Elements [start, stop) of a dimension."""
    seen, dim = _canonical(q, dim)
    size, fields = q.shape[seen], {}
    for name, dims in q.field_layout().items():
        rule, t = dims[dim], q.__dict__[name]
        if rule is None:
            fields[name] = t
            continue
        logical, stored = rule if isinstance(rule, tuple) else (rule, 1)
        first, last = start // logical, -(-stop // logical)
        one_block = last - first <= 1
        starts_well = start % logical == 0 or (one_block and not isinstance(rule, tuple))
        if not starts_well or not (stop % logical == 0 or stop == size or one_block):
            raise UnsupportedOpError(
                f"cannot cut [{start}:{stop}] out of dimension {seen} (size {size}) of a "
                f"{type(q).__name__}: its {name} belong to {logical} elements each there, "
                f"so cuts fall on multiples of {logical}. Call .dequantize() first."
            )
        fields[name] = t.narrow(
            dim, first * stored, max(last - first, 0) * stored if stop > start else 0
        )
    return q.rebuild(shape=_with(q.shape, seen, max(stop - start, 0)), **fields)


def _with(shape: torch.Size, dim: int, size: int) -> torch.Size:
    return torch.Size([*shape[:dim], size, *shape[dim + 1 :]])


@QTensor.implements(aten.slice.Tensor, aliasing=True)
def _slice(q: QTensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> QTensor:
    size = q.shape[dim]
    start, stop, _ = slice(start, end).indices(size)
    if step != 1:
        raise UnsupportedOpError(
            f"a {type(q).__name__} is sliced with step 1, got {step}; call .dequantize() first"
        )
    return _cut(q, dim, start, max(start, stop))


@QTensor.implements(aten.narrow.default)
def _narrow(q: QTensor, dim: int, start: int, length: int) -> QTensor:
    return _cut(q, dim, start % max(q.shape[dim], 1), start % max(q.shape[dim], 1) + length)


@QTensor.implements(aten.select.int, aliasing=True)
def select(q: QTensor, dim: int, index: int) -> QTensor:
    seen, canonical = _canonical(q, dim)
    size = q.shape[seen]
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range for dimension {seen} of size {size}")
    layout = q.field_layout()
    if (
        q.dim() < 3
        or canonical >= q.dim() - 2
        or any(d[canonical] not in EACH for d in layout.values())
    ):
        raise UnsupportedOpError(
            f"{type(q).__name__}: select works on leading dimensions of (E, N, K) weights; "
            "call .dequantize() first"
        )
    fields = {
        name: q.__dict__[name].select(canonical, 0 if dims[canonical] is None else index % size)
        for name, dims in layout.items()
    }
    return q.rebuild(shape=torch.Size([*q.shape[:seen], *q.shape[seen + 1 :]]), **fields)


@QTensor.implements(aten.split.Tensor, aliasing=True)
def _split(q: QTensor, size: int, dim: int = 0) -> list[QTensor]:
    total = q.shape[dim]
    return [_cut(q, dim, at, min(at + size, total)) for at in range(0, max(total, 1), max(size, 1))]


@QTensor.implements(aten.split_with_sizes.default, aliasing=True)
def _split_with_sizes(q: QTensor, sizes: list[int], dim: int = 0) -> list[QTensor]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    if not ends or ends[-1] != q.shape[dim]:
        raise ValueError(f"split: sizes {list(sizes)} do not add up to {q.shape[dim]}")
    return [_cut(q, dim, end - n, end) for n, end in zip(sizes, ends, strict=True)]


@QTensor.implements(aten.chunk.default)
def _chunk(q: QTensor, chunks: int, dim: int = 0) -> list[QTensor]:
    return _split(q, -(-q.shape[dim] // chunks), dim)


@QTensor.implements(aten.index_select.default)
def _index_select(q: QTensor, dim: int, index: Tensor) -> QTensor:
    seen, canonical = _canonical(q, dim)
    dims = {name: d[canonical] for name, d in q.field_layout().items()}
    if any(d not in EACH for d in dims.values()):
        raise UnsupportedOpError(
            f"{type(q).__name__}: index_select works on unblocked dimensions; "
            "call .dequantize() first"
        )
    fields = {}
    for name, rule in dims.items():
        t = q.__dict__[name]
        if rule is not None:
            t = bits(t).index_select(canonical, index).view(t.dtype)
        fields[name] = t
    return q.rebuild(shape=_with(q.shape, seen, len(index)), **fields)


@QTensor.implements(aten.index.Tensor)
def _index(q: QTensor, indices: list[Tensor | None]) -> QTensor:
    """One index of the first dimension: `experts[expert_ids]`."""
    if (
        len(indices) != 1
        or indices[0] is None
        or indices[0].dim() != 1
        or indices[0].dtype == torch.bool
    ):
        raise UnsupportedOpError(
            f"a {type(q).__name__} is indexed by one vector of row numbers; "
            "call .dequantize() first"
        )
    return _index_select(q, 0, indices[0])


@QTensor.implements(aten.cat.default)
def _cat(parts: list[QTensor], dim: int = 0) -> QTensor:
    first = parts[0]
    seen, canonical = _canonical(first, dim)
    for part in parts:
        if type(part) is not type(first) or part.metadata() != first.metadata():
            raise ValueError(
                f"cat: all parts must have one format; got\n  {first!r}\nand\n  {part!r}"
            )
    parts = [p for p in parts if p.shape[seen]] or [first]
    fields, total = {}, sum(p.shape[seen] for p in parts)
    for name, dims in parts[0].field_layout().items():
        tensors = [p.__dict__[name] for p in parts]
        pair = dims[canonical]
        block = pair[0] if isinstance(pair, tuple) else pair
        ragged = any(p.shape[seen] % block for p in parts[:-1]) if block else False
        if pair is None or ragged:
            shared = all(torch.equal(t, tensors[0]) for t in tensors[1:])
            if not shared or (ragged and (isinstance(pair, tuple) or total > (block or 0))):
                raise UnsupportedOpError(
                    f"cat: parts of a {type(first).__name__} along dimension {seen} cannot be "
                    f"joined: {name} differs between them or a block ends inside a part. "
                    "Call .dequantize() first."
                )
            fields[name] = tensors[0]
        else:
            joined = torch.cat([bits(t) for t in tensors], canonical)
            fields[name] = joined.view(tensors[0].dtype)
    return parts[0].rebuild(shape=_with(first.shape, seen, total), **fields)
