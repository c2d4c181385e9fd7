"""The layers that tune.py measures: for each op and kind of scales, arguments of a random weight.

M tokens, N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ao_core.packing import pack
from ao_kernels.ops import layout

WHOLE = 1 << 30  # a block as large as any tensor
_GROUP = 128


@dataclass(frozen=True)
class Layer:
    """``args(x)``: those of the op; ``dense``: computes the weight, in bfloat16."""

    args: Callable[[Tensor], tuple[Any, ...]]
    dense: Callable[[], Tensor]
    tensors: Sequence[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Format:
    """An op with weights of one kind; ``tolerance``: relative error against the dense weight."""

    op: str
    kind: str
    make: Callable[[int, int, str], Layer]
    tolerance: float
    default: bool = True


def _int4(N: int, K: int, device: str) -> Layer:
    codes = pack(torch.randint(0, 16, (N, K), dtype=torch.uint8, device=device), 4)
    scale = (torch.rand(N, -(-K // _GROUP), device=device) / (4 * K**0.5)).bfloat16()

    def dense() -> Tensor:
        return layout.dequantize_intx(
            codes, scale, None, bits=4, group_size=_GROUP, length=K, dtype=torch.bfloat16
        )

    return Layer(lambda x: (x, codes, scale, None, _GROUP, None), dense, (codes, scale))


def _intx(bits: int) -> Callable[[int, int, str], Layer]:
    def make(N: int, K: int, device: str) -> Layer:
        values = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8, device=device)
        codes, groups = pack(values, bits), -(-K // _GROUP)
        scale = (torch.rand(N, groups, device=device) / (2**bits * K**0.5)).bfloat16()

        def dense() -> Tensor:
            return layout.dequantize_intx(
                codes, scale, None, bits=bits, group_size=_GROUP, length=K, dtype=torch.bfloat16
            )

        return Layer(lambda x: (x, codes, scale, None, bits, _GROUP, None), dense, (codes, scale))

    return make


def _int8(*names: str) -> Callable[[int, int, str], Layer]:
    """names: arguments between scale and bias, "group_size" or "x_scale"."""

    def make(N: int, K: int, device: str) -> Layer:
        codes = torch.randint(-127, 128, (N, K), dtype=torch.int8, device=device)
        scale = torch.rand(N, 1, device=device) / (64 * K**0.5)
        known = {"group_size": K, "x_scale": torch.full((1, 1), 6 / 127, device=device)}
        given = [known[name] for name in names]

        def dense() -> Tensor:
            return layout.dequantize_int8(codes, scale, group_size=K, dtype=torch.bfloat16)

        return Layer(lambda x: (x, codes, scale, *given, None), dense, (codes, scale))

    return make


_BLOCKS = {"tensor": (WHOLE, WHOLE), "row": (1, WHOLE), "block": (128, 128)}


def _float8(kind: str, op: str) -> Callable[[int, int, str], Layer]:
    block = _BLOCKS[kind]

    def make(N: int, K: int, device: str) -> Layer:
        codes = (torch.randn(N, K, device=device) * 64).to(torch.float8_e4m3fn)
        shape = (-(-N // block[0]), -(-K // block[1]))
        scale = (torch.rand(shape, device=device) + 0.5) / (64 * K**0.5)
        x_scale = torch.full((1, 1), 6 / 448, device=device)

        def args(x: Tensor) -> tuple[Any, ...]:
            if op == "float8_static_linear":
                return x, codes, scale, x_scale, *block, None
            if op == "float8_dynamic_linear":
                return x, codes, scale, *block, kind, None
            return x, codes, scale, *block, None

        def dense() -> Tensor:
            return layout.dequantize_float8(codes, scale, *block, torch.bfloat16)

        return Layer(args, dense, (codes, scale))

    return make


FORMATS = (
    Format("int4_linear", f"group {_GROUP}", _int4, 0.02),
    Format("int8_linear", "row", _int8("group_size"), 0.02),
    Format("float8_linear", "row", _float8("row", "float8_linear"), 0.02),
    Format("int8_dynamic_linear", "row", _int8(), 0.05),
    *(
        Format("float8_dynamic_linear", name, _float8(kind, "float8_dynamic_linear"), 0.06)
        for kind, name in (("tensor", "tensor"), ("row", "row"), ("block", "block 128x128"))
    ),
    Format("int8_static_linear", "row", _int8("x_scale"), 0.05, default=False),
    Format(
        "float8_static_linear",
        "tensor",
        _float8("tensor", "float8_static_linear"),
        0.06,
        default=False,
    ),
    Format("float8_int4_linear", f"group {_GROUP}", _int4, 0.06, default=False),
    *(
        Format("intx_linear", f"{bits} bits, group {_GROUP}", _intx(bits), 0.02, default=False)
        for bits in (1, 2, 3, 5, 6, 7)
    ),
)
