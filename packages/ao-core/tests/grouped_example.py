"""A format with all that a checkpoint carries: packing, an optional field, all metadata types."""

import torch
from torch import Tensor

from ao_core import numerics
from ao_core.packing import pack, unpack
from ao_core.tensor import Dim, QTensor, register_tensor

__all__ = ["GroupedExample"]


@register_tensor
class GroupedExample(QTensor):
    """codes (..., N, ceil(K/8)*bits) uint8; scale and zero (..., N, G) bfloat16, zero optional."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    group_size: int
    bits: int
    note: str | None
    share: float

    @classmethod
    def from_float(
        cls, w: Tensor, *, bits: int = 4, group_size: int = 16, mapping: str = "asymmetric"
    ) -> "GroupedExample":
        """Quantize w, (..., N, K)."""
        how = {"bits": bits, "group_size": group_size}
        scale, zero = numerics.choose_intx_qparams(w, mapping=mapping, **how)  # type: ignore[arg-type]
        codes = pack(numerics.quantize_intx(w, scale, zero, **how), bits)
        values = {"codes": codes, "scale": scale, "zero": zero, "note": None, "share": 0.5, **how}
        return cls(**values, shape=w.shape, dtype=w.dtype)  # type: ignore[arg-type]

    def dequantize(self) -> Tensor:
        codes = unpack(self.codes, self.bits, self.shape[-2 if self.transposed else -1])
        how = {"bits": self.bits, "group_size": self.group_size}
        w = numerics.dequantize_intx(codes, self.scale, self.zero, **how, dtype=self.dtype)
        return w.mT if self.transposed else w

    def field_layout(self) -> dict[str, tuple[Dim, ...]]:
        lead = (1,) * (self.codes.dim() - 1)
        rules: dict[str, Dim] = {
            "codes": (8, self.bits),
            "scale": self.group_size,
            "zero": self.group_size,
        }
        return {name: (*lead, rules[name]) for name in self.tensors()}

    def check(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is 1 to 8, got {self.bits}")
        super().check()
        if self.codes.dtype != torch.uint8:
            raise ValueError(f"codes are uint8, got {self.codes.dtype}")
