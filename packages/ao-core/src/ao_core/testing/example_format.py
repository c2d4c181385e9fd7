"""The smallest complete format: int8 rows in plain torch. ao-core's own tests run on it; start a
new format from it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ao_core import numerics
from ao_core.config import AOBaseConfig, register_config
from ao_core.tensor import Dim, QTensor, register_tensor
from ao_core.transform import register_handler

__all__ = ["ExampleConfig", "ExampleTensor"]

aten = torch.ops.aten


@register_config
@dataclass(frozen=True, kw_only=True)
class ExampleConfig(AOBaseConfig):
    """int8 rows; weights whose first dimension is in `refuse` sizes are refused, those in `fail`
    sizes fail half-way."""

    refuse: tuple[int, ...] = ()
    fail: tuple[int, ...] = ()


@register_tensor
class ExampleTensor(QTensor):
    """codes (..., N, K) int8, scale (..., N, 1) float32; w ~ codes * scale."""

    codes: Tensor
    scale: Tensor
    row: int  # input features that share a scale

    @classmethod
    def from_float(cls, w: Tensor) -> "ExampleTensor":  # type: ignore[override]
        """Quantize w, (..., N, K)."""
        scale = numerics.choose_int8_scale(w, group_size=w.shape[-1])
        codes = numerics.quantize_int8(w, scale, group_size=w.shape[-1])
        return cls(codes=codes, scale=scale, row=w.shape[-1], shape=w.shape, dtype=w.dtype)

    def requantize(self, w: Tensor) -> "ExampleTensor":
        return self.from_float(w.to(self.dtype))

    def dequantize(self) -> Tensor:
        w = (self.codes * self.scale).to(self.dtype)
        return w.mT if self.transposed else w

    def field_layout(self) -> dict[str, tuple[Dim, ...]]:
        lead = (1,) * (self.codes.dim() - 1)
        return {"codes": (*lead, (1, 1)), "scale": (*lead, self.row)}


@ExampleTensor.implements(F.linear, aten.linear.default)
def _linear(x: Tensor, w: Any, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.float()
    return F.linear(x.float(), w.to(torch.float32).dequantize(), bias).to(x.dtype)


@ExampleTensor.implements(aten.mm.default, aten.bmm.default)
def _mm(a: Any, b: Any) -> Tensor:
    return a @ b.dequantize() if isinstance(b, ExampleTensor) else a.dequantize() @ b


def _refuse(module: nn.Module, name: str, w: Tensor, config: ExampleConfig) -> str | None:
    if w.dim() < 2:
        return f"has shape {tuple(w.shape)}"
    return f"has {w.shape[0]} rows" if w.shape[0] in config.refuse else None


@register_handler(ExampleConfig, refuse=_refuse)
def _convert(w: Tensor, config: ExampleConfig) -> Tensor:
    if w.shape[0] in config.fail:
        raise RuntimeError(f"a weight of {w.shape[0]} rows failed on purpose")
    return ExampleTensor.from_float(w)
