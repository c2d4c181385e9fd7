"""int8 weights: weight-only, and with activations quantized to int8 on every call.

w ~ code * scale      code in [-127, 127], symmetric; scale float32 a tensor, a row or a group
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core import numerics
from ao_core.config import AOBaseConfig, register_config
from ao_core.granularity import Granularity, PerAxis, PerGroup, PerRow, PerTensor
from ao_core.tensor import register_tensor
from ao_core.transform import register_handler
from ao_kernels.ops import int8_dynamic_linear, int8_embedding, int8_linear

from .weight import (
    IntWeight,
    check_dtypes,
    check_granularity,
    chunked_rows,
    group_size_of,
    joined,
    refuse,
    without_trailing,
)

__all__ = ["Int8DynamicActivationInt8WeightConfig", "Int8Tensor", "Int8WeightOnlyConfig"]


@register_config
@dataclass(frozen=True, kw_only=True)
class Int8WeightOnlyConfig(AOBaseConfig):
    """int8 weights, float activations: half the bytes of bfloat16, the safest format.

    granularity: PerRow() (default), PerAxis(0) (the same), PerTensor() or PerGroup(n), n a multiple
    of 8.
    """

    granularity: Granularity = PerRow()

    def __post_init__(self) -> None:
        check_granularity(
            "Int8WeightOnlyConfig", self.granularity, (PerRow, PerAxis, PerTensor, PerGroup)
        )


@register_config
@dataclass(frozen=True, kw_only=True)
class Int8DynamicActivationInt8WeightConfig(AOBaseConfig):
    """int8 weights and int8 activations, one scale a token, found on every call: the fastest at
    many tokens.

    granularity of the weight: PerRow() (default), PerAxis(0) (the same) or PerTensor().
    """

    granularity: Granularity = PerRow()

    def __post_init__(self) -> None:
        check_granularity(
            "Int8DynamicActivationInt8WeightConfig", self.granularity, (PerRow, PerAxis, PerTensor)
        )


@register_tensor
class Int8Tensor(IntWeight):
    """codes (..., N, K) int8, scale (..., N or 1, G) float32."""

    @classmethod
    def from_float(  # type: ignore[override]
        cls, w: Tensor, *, granularity: Granularity = PerRow(), activation: str | None = None
    ) -> "Int8Tensor":
        """Quantize w, (N, K), (E, N, K) or a 1x1 convolution's (N, K, 1, ...)."""
        shape, (w, trailing) = w.shape, without_trailing(w)
        group_size, whole = group_size_of(granularity, w.shape[-1]), None
        if isinstance(granularity, PerTensor):
            whole = numerics.choose_int8_scale(w.reshape(1, -1), group_size=w.numel())
        codes, scales = [], []
        for rows in chunked_rows(w):
            scale = (
                numerics.choose_int8_scale(rows, group_size=group_size) if whole is None else whole
            )
            codes.append(numerics.quantize_int8(rows, scale, group_size=group_size))
            scales.append(scale)
        scale = joined(scales, w, trailing) if whole is None else whole.reshape((1,) * len(shape))
        return cls(
            codes=joined(codes, w, trailing),
            scale=scale,
            group_size=group_size,
            activation=activation,
            trailing=trailing,
            shape=shape,
            dtype=w.dtype,
        )

    def requantize(self, w: Tensor) -> "Int8Tensor":
        return self.from_float(
            w.to(self.dtype), granularity=self._granularity(), activation=self.activation
        )

    def _granularity(self) -> Granularity:
        plain = self.flat()
        if plain.scale.numel() == 1 < plain.codes.shape[:-1].numel():
            return PerTensor()
        return PerRow() if self.group_size >= plain.codes.shape[-1] else PerGroup(self.group_size)

    def dequantize(self) -> Tensor:
        plain = self.flat()
        w = numerics.dequantize_int8(
            plain.codes, plain.scale, group_size=self.group_size, dtype=self.dtype
        )
        return w.mT if self.transposed else w.reshape(self.shape)

    def check(self) -> None:
        super().check()
        check_dtypes(self, {"codes": (torch.int8,), "scale": (torch.float32,)})

    def code_rule(self) -> tuple[int, int]:
        return (1, 1)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.activation is None:
            return int8_linear(x, self.codes, self.scale, self.group_size, bias)
        return int8_dynamic_linear(x, self.codes, self.scale, bias)

    def rows(self, indices: Tensor) -> Tensor:
        return int8_embedding(indices, self.codes, self.scale, self.group_size, self.dtype)

    def describe(self) -> str:
        """The format in a few words, for reports."""
        kind = {PerTensor: "tensor", PerRow: "row"}.get(
            type(self._granularity()), f"group {self.group_size}"
        )
        return f"int8 {kind}" + (", int8 activations" if self.activation else "")


@register_handler(Int8WeightOnlyConfig, refuse=refuse)
def _weight_only(w: Tensor, config: Int8WeightOnlyConfig) -> Tensor:
    return Int8Tensor.from_float(w, granularity=config.granularity)


@register_handler(Int8DynamicActivationInt8WeightConfig, refuse=refuse)
def _dynamic(w: Tensor, config: Int8DynamicActivationInt8WeightConfig) -> Tensor:
    return Int8Tensor.from_float(w, granularity=config.granularity, activation="int8_symmetric")
