"""Grouped linears, the products of a mixture of experts: what their ops share.

    y[t] = linear(x[t], weight[e], bias[e])        offsets[e - 1] <= t < offsets[e]

T tokens sorted by expert, E experts, N output features, K input features.

A grouped op has the arguments of a linear, its weight and bias with a leading dimension of experts,
and ``offsets`` in front of the bias. Its reference and its gradient are those of the linear, expert
by expert: they wait for ``offsets`` to arrive on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ao_kernels.ops import layout
from ao_kernels.registry import Op

_LIBRARY = torch.library.Library("ao", "FRAGMENT")


def check_experts(
    op: str, x: Tensor, codes: Tensor, offsets: Tensor, bias: Tensor | None, **fields: Tensor | None
) -> None:
    """x (T, K), codes (E, N, ...), offsets (E,), bias (E, N) and each field (E or 1, ...) fit
    together and are on one device. What an expert's own fields must be is the linear's to check."""
    layout.check_activation(op, x)
    if x.dim() != 2:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}; it must be (T, K), tokens sorted by expert"
        )
    if codes.dim() != 3 or codes.shape[0] == 0:
        raise ValueError(
            f"{op}: codes have shape {tuple(codes.shape)}; the weights of experts have three "
            "dimensions (E, N, ...), and there is at least one expert"
        )
    n_experts, n_features = codes.shape[:2]
    for name, field in fields.items():
        if field is not None and (field.dim() != 3 or field.shape[0] not in (1, n_experts)):
            raise ValueError(
                f"{op}: {name} has shape {tuple(field.shape)}; codes have {n_experts} experts, so "
                f"it must be ({n_experts}, ...), or (1, ...) where all share it"
            )
    if offsets.dtype != torch.int32:
        raise TypeError(f"{op}: offsets have dtype {offsets.dtype}; they must be torch.int32")
    if offsets.shape != (n_experts,):
        raise ValueError(
            f"{op}: offsets have shape {tuple(offsets.shape)}; codes have {n_experts} experts, so "
            f"they must be ({n_experts},): the end of each expert's rows"
        )
    if bias is not None:
        if bias.shape != (n_experts, n_features):
            raise ValueError(
                f"{op}: bias has shape {tuple(bias.shape)}; codes have {n_experts} experts of "
                f"{n_features} rows, so it must be ({n_experts}, {n_features})"
            )
        layout.check_bias(op, bias[0], n_features)
    layout.check_devices(op, x, codes=codes, offsets=offsets, bias=bias, **fields)


def each(
    linear: Callable[..., Tensor],
    x: Tensor,
    weight: tuple[Any, ...],
    offsets: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The linear of every expert on its own rows. weight: the arguments between x and offsets."""
    y = x.new_zeros(x.shape[0], weight[0].shape[1])
    for expert, rows in rows_of(x, offsets):
        y[rows] = linear(x[rows], *_of(expert, weight), None if bias is None else bias[expert])
    return y


def derive(grouped: Op, linear: Op) -> None:
    """The fake and the backward of a grouped op, from those of its linear.

    Which rows meet which expert is known only when it runs, so the gradients are a custom op as
    well, ``ao::<name>_backward``, that a compiled graph holds as one node.
    """
    arguments = str(grouped.schema).partition("(")[2].rpartition(") ->")[0]

    def gradients(grad: Tensor, needs: list[bool], *args: Any) -> tuple[Tensor, Tensor]:
        args = args if len(args) > grouped._most else (*args, None)  # a bias of None is left out
        x, *weight, offsets, bias = args
        grad_x, grad_bias = _room(x, bias, needs)
        for expert, rows in rows_of(x, offsets):
            bias_N = None if bias is None else bias[expert]
            call = (x[rows], *_of(expert, tuple(weight)), bias_N)
            assert linear._backward is not None
            of_x, of_bias = linear._backward(grad[rows], call, needs)
            if needs[0]:
                grad_x[rows] = of_x
            if of_bias is not None:
                grad_bias[expert] = of_bias
        return grad_x, grad_bias

    # Not by torch.library.custom_op, which takes 1.5 ms of an import for each (torch 2.13, EPYC).
    name = f"{grouped.name}_backward"
    schema = f"(Tensor grad, bool[] needs, {arguments}) -> (Tensor, Tensor)"
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, gradients, "CompositeExplicitAutograd")
    node = getattr(torch.ops.ao, name).default

    @torch.library.register_fake(f"ao::{name}", lib=_LIBRARY)
    def _(grad: Tensor, needs: list[bool], *args: Any) -> tuple[Tensor, Tensor]:
        return _room(args[0], args[-1] if len(args) > grouped._most else None, needs)

    @grouped.backward
    def _(grad: Tensor, args: tuple[Any, ...], needs: list[bool]) -> tuple[Any, ...]:
        found = node(grad, needs, *args)
        return tuple(g if need else None for g, need in zip(found, needs, strict=True))

    @grouped.fake
    def _(x: Tensor, codes: Tensor, *_: Any) -> Tensor:
        return x.new_empty(x.shape[0], codes.shape[1])


def rows_of(x: Tensor, offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """Experts that have tokens, and which; none on the meta device, where there are no values."""
    start = 0
    for expert, end in enumerate([] if offsets.is_meta else offsets.tolist()):
        stop = min(end, x.shape[0])
        if stop > start:
            yield expert, slice(start, stop)
            start = stop


def _of(expert: int, weight: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a linear: the expert's part of each tensor."""
    return tuple(
        value[expert if value.shape[0] > 1 else 0] if isinstance(value, Tensor) else value
        for value in weight
    )


def _room(x: Tensor, bias: Tensor | None, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """Zeros for the gradients of x and bias; empty where they are not wanted."""
    grad_x = x.new_zeros(x.shape if needs[0] else 0)
    return grad_x, x.new_zeros(0) if bias is None or not needs[1] else bias.new_zeros(bias.shape)
