"""Products of a mixture of experts: tokens sorted by expert, each group with a weight of its own.

Letters: T tokens, E experts, N output features, K input features. Which rows meet which expert is
known only when it runs, so a compiled graph holds the whole product as one node.

Formats with a grouped kernel compute all experts at once (``ScaledWeight.grouped_linear``); this is
the way of all others, and of gradients that meet the untransposed weight: expert by expert.
"""

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ao_core.tensor import QTensor, tensor_class

if TYPE_CHECKING:
    from .weight import ScaledWeight

__all__ = ["grouped_product"]


def grouped_product(x_TK: Tensor, w_EKN: "ScaledWeight", offs: Tensor) -> Tensor:
    """(T, K) x (E, K, N) -> (T, N): rows offs[e-1] to offs[e] meet expert e.

    offs  (E,) int32 or int64, ascending; rows from offs[-1] on are zeros
    """
    if type(offs) is Tensor:
        return _grouped(x_TK, w_EKN, offs)
    fields = w_EKN.tensors()
    return _node(x_TK, list(fields.values()), offs, _described(w_EKN, list(fields)))


def _grouped(x: Tensor, w: QTensor, offs: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], w.shape[-1])
    start = 0
    for expert, stop in enumerate(offs.tolist()):
        if stop > start:
            y[start:stop] = torch.mm(x[start:stop], w[expert])
        start = stop
    return y


@torch.library.custom_op("ao_quant::grouped_product", mutates_args=())
def _node(x: Tensor, fields: list[Tensor], offs: Tensor, weight: str) -> Tensor:
    known = json.loads(weight)
    w = tensor_class(known["class"])(
        shape=torch.Size(known["shape"]),
        dtype=getattr(torch, known["dtype"]),
        **dict(zip(known["fields"], fields, strict=True)),
        **known["meta"],
    )
    return _grouped(x, w, offs)


@_node.register_fake
def _(x: Tensor, fields: list[Tensor], offs: Tensor, weight: str) -> Tensor:
    return x.new_empty(x.shape[0], json.loads(weight)["shape"][-1])


def _described(w: QTensor, fields: list[str]) -> str:
    """All of a weight but its tensors, so that another process can rebuild it in the same graph."""
    known = {
        "class": type(w).__name__,
        "shape": list(w.shape),
        "dtype": str(w.dtype).removeprefix("torch."),
        "fields": fields,
        "meta": w.metadata(),
    }
    return json.dumps(known)
