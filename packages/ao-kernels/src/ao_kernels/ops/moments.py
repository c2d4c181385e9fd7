"""What the ops that take a step of an optimizer share: their moments, and what is checked of them.

T parameters, B blocks of n elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ao_core.moments import StateBits, dequantize_moment, get_format, quantize_moment
from ao_core.rounding import keyed_bits, round_to_bfloat16

__all__ = [
    "Stored",
    "bits_of",
    "changed",
    "check_step",
    "counted",
    "direct_entry",
    "ready",
    "root",
    "run_compiled",
    "scalar_rows",
    "sent",
    "store",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NAMES = ("8", "4", "fp8", "32")


def bits_of(state_bits: str) -> StateBits:
    """The key of a format in `ao_core.moments.FORMATS`, by its name in a schema; 32 has none."""
    return state_bits if state_bits == "fp8" else int(state_bits)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on a device, without waiting for it: from pinned memory, which torch does not give to
    anyone else before the copy has been made."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def scalar_rows(
    steps: Sequence[float],
    given: Sequence[float | Tensor],
    row: Callable[..., tuple[Any, ...]],
) -> Tensor:
    """(T, 8) float64: what ``row`` makes of each step and the hyperparameters, from numbers or from
    tensors of one shape.

    Where some of the hyperparameters are on a GPU the result is there, too, and the host does not
    wait for them.
    """
    given = [float(x) if isinstance(x, Tensor) and x.device.type == "cpu" else x for x in given]
    device = next((x.device for x in given if isinstance(x, Tensor)), None)
    distinct = sorted(set(steps))
    if device is None:
        rows = [row(step, *given) for step in distinct]
        found = torch.tensor(rows, dtype=torch.float64).view(len(rows), -1 if rows else 8)
    else:
        step = sent(torch.tensor(distinct, dtype=torch.float64), device)
        columns = [
            x.detach().reshape(()).to(device).double().expand(len(distinct))
            if isinstance(x, Tensor)
            else torch.full_like(step, x)
            for x in given
        ]
        found = torch.stack(row(step, *columns), 1)
    if len(distinct) == 1:
        return found.expand(len(steps), found.shape[1])
    place = {step: i for i, step in enumerate(distinct)}
    index = torch.tensor([place[step] for step in steps], dtype=torch.int64)
    return found[sent(index, found.device)]


def counted(steps: list[Tensor]) -> list[float]:
    """Adds one to each of the counts of steps, tensors of one element, and gives what they are now.

    300 take 0.8 ms with torch (torch._foreach_add_ has no kernel for CPUs) and 0.01 compiled.
    """
    from ao_kernels import cpu

    if cpu._C is not None and not torch.compiler.is_compiling():
        found = cpu._C.count_steps(steps)
        if found is not NotImplemented:
            return found
    torch._foreach_add_(steps, 1)
    return [float(step) for step in steps]


Lists = Sequence[Sequence[Tensor]]
_CODES = (torch.uint8, torch.float8_e4m3fn)


def ready(lists: Lists) -> tuple[list[list[Tensor]], list[tuple[Tensor, Tensor]]]:
    """The lists with contiguous tensors, codes at multiples of 8 bytes; and the tensors that had to
    be copied for that, each with its copy."""
    copied: list[tuple[Tensor, Tensor]] = []
    found = []
    for each in lists:
        fit = [x if _fits(x) else x.clone(memory_format=torch.contiguous_format) for x in each]
        copied += [(x, y) for x, y in zip(each, fit, strict=True) if x is not y]
        found.append(fit)
    return found, copied


def _fits(x: Tensor) -> bool:
    return x.is_contiguous() and (x.dtype not in _CODES or x.data_ptr() % 8 == 0)


def changed(lists: Lists) -> None:
    """Tells autograd that a kernel has written the tensors."""
    torch.autograd.graph.increment_version([x for each in lists for x in each])


def direct_entry(kernel: Callable[..., Any], n_lists: int) -> Callable[..., Any]:
    """The direct entry of a compiled kernel, which refuses what it does not take as it is. The
    first ``n_lists`` arguments are lists; it writes all but the second."""

    def run(token: int, *args: Any) -> Any:
        done = kernel(token, *args)
        if done is not NotImplemented:
            changed((args[0], *args[2:n_lists]))
        return done

    return run


def run_compiled(kernel: Callable[..., Any], n_lists: int, args: tuple[Any, ...]) -> None:
    """A compiled kernel on arguments that it supports; copies what is not contiguous."""
    lists, copied = ready(args[:n_lists])
    done = kernel(torch.get_num_threads(), *lists, *args[n_lists:])
    assert done is not NotImplemented
    for given, used in copied:
        if not any(given is g for g in args[1]):
            given.copy_(used)
    changed((args[0], *args[2:n_lists]))


class Stored:
    """The moments of one parameter, read and written in plain torch."""

    def __init__(self, state_bits: str, block_size: int, p: Tensor) -> None:
        self.bits = bits_of(state_bits)
        self.block_size = block_size
        self.p = p

    def read(
        self, values: Sequence[Tensor], scales: Sequence[Tensor], i: int, *, signed: bool
    ) -> Tensor:
        """A moment in the parameter's shape; what is stored in full is not copied."""
        if self.bits == 32:
            return values[i]
        blocks = dequantize_moment(
            values[i], scales[i], bits=self.bits, signed=signed, block_size=self.block_size
        )
        moment = blocks.flatten()[: self.p.numel()].view(self.p.shape)
        return moment.double() if self.p.dtype == torch.float64 else moment

    def write(
        self,
        values: Sequence[Tensor],
        scales: Sequence[Tensor],
        i: int,
        x: Tensor,
        *,
        signed: bool,
        dither: int | None = None,
    ) -> None:
        if self.bits == 32:
            values[i].copy_(x)
            return
        codes, scale = quantize_moment(
            x, bits=self.bits, signed=signed, block_size=self.block_size, dither=dither
        )
        values[i].copy_(codes)
        scales[i].copy_(scale)


def root(x: Tensor) -> Tensor:
    """The root, rounded right: torch's of float32 on CPUs is off by a last place in 0.6 % of
    numbers (2.13, MKL); one from float64 is not, because 53 >= 2 * 24 + 2 bits."""
    return x.double().sqrt().to(x.dtype)


def store(p: Tensor, x: Tensor, keys: Sequence[int], offsets: Sequence[int], i: int) -> None:
    """The new parameter x, rounded as the keys say."""
    if keys and p.dtype == torch.bfloat16:
        index = torch.arange(p.numel(), device=p.device).view(p.shape) + offsets[i]
        x = round_to_bfloat16(x, keyed_bits(index, keys[i]))
    with torch.no_grad():
        p.copy_(x)


def check_step(
    op: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: Mapping[str, tuple[Sequence[Tensor], Sequence[Tensor]]],
    scalars: Tensor,
    columns: Sequence[str],
    state_bits: str,
    block_size: int,
    keys: Sequence[int],
    offsets: Sequence[int],
) -> None:
    """Raises for lists that do not fit together; ``state``: values and scales by name."""
    if state_bits not in _NAMES:
        raise ValueError(f"{op}: state_bits is one of {', '.join(_NAMES)}, got {state_bits!r}")
    if block_size < 8 or block_size % 8:
        raise ValueError(f"{op}: block_size is a multiple of 8, got {block_size}")
    lengths = {"grads": len(grads)} | {name: len(values) for name, (values, _) in state.items()}
    if state_bits == "32":
        lengths |= {f"{name}_scale": len(s) + len(params) for name, (_, s) in state.items() if s}
    else:
        lengths |= {f"{name}_scale": len(scales) for name, (_, scales) in state.items()}
    if keys or offsets:
        lengths |= {"keys": len(keys), "offsets": len(offsets)}
    for name, length in lengths.items():
        if length != len(params):
            raise ValueError(f"{op}: {len(params)} parameters, but {length} {name}")
    if scalars.shape != (len(params), len(columns)) or scalars.dtype != torch.float64:
        raise ValueError(
            f"{op}: scalars is ({len(params)}, {len(columns)}) float64, with the columns "
            f"{', '.join(columns)}; got {tuple(scalars.shape)} {scalars.dtype}"
        )
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        _check_pair(op, i, p, g, params[0], grads[0])
        for name, (values, scales) in state.items():
            scale = None if state_bits == "32" else scales[i]
            _check_moment(f"{op}: {name} {i}", p, values[i], scale, state_bits, block_size)


def _check_pair(op: str, i: int, p: Tensor, g: Tensor, first: Tensor, first_grad: Tensor) -> None:
    if p.dtype not in _DTYPES or g.dtype not in _DTYPES:
        raise TypeError(
            f"{op}: parameters and gradients are float32, bfloat16, float16 or float64; number {i} "
            f"is {p.dtype} with a gradient of {g.dtype}"
        )
    if p.dtype != first.dtype or g.dtype != first_grad.dtype or p.device != first.device:
        raise ValueError(
            f"{op}: all parameters have one dtype and device, and all gradients one dtype; number "
            f"{i} is {p.dtype} on {p.device} with a gradient of {g.dtype}, the first one "
            f"{first.dtype} on {first.device} with {first_grad.dtype}"
        )
    if g.shape != p.shape or g.device != p.device:
        raise ValueError(
            f"{op}: the gradient of number {i} is {tuple(g.shape)} on {g.device}, the parameter "
            f"{tuple(p.shape)} on {p.device}"
        )


def _check_moment(
    name: str, p: Tensor, values: Tensor, scale: Tensor | None, state_bits: str, block_size: int
) -> None:
    if scale is None:
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        shape = tuple(p.shape)
    else:
        row = get_format(bits_of(state_bits))
        blocks = -(-p.numel() // block_size)
        dtype, shape = row.storage, (blocks, row.stored_width(block_size))
        if scale.dtype != torch.float32 or scale.shape != (blocks,) or not scale.is_contiguous():
            raise ValueError(
                f"{name} has a scale of {tuple(scale.shape)} {scale.dtype}; a contiguous one of "
                f"{(blocks,)} float32 belongs there"
            )
        if not values.is_contiguous():
            raise ValueError(f"{name} has codes that are not contiguous")
    if values.dtype != dtype or tuple(values.shape) != shape or values.device != p.device:
        raise ValueError(
            f"{name} is {tuple(values.shape)} {values.dtype} on {values.device}; the parameter's "
            f"shape {tuple(p.shape)} asks for {shape} {dtype} on {p.device}"
        )
