"""int8 weights: weight-only, and with activations quantized to int8.

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
from ao_kernels.ops import (
    int8_dynamic_grouped_linear,
    int8_dynamic_linear,
    int8_embedding,
    int8_grouped_linear,
    int8_linear,
    int8_static_linear,
)

from .activation_ranges import check_activation_range, refuse_without_range
from .weight import (
    ScaledWeight,
    check_dtypes,
    check_granularity,
    chunked_rows,
    group_size_of,
    joined,
    refuse,
    static_scale,
    without_trailing,
)

__all__ = [
    "Int8DynamicActivationInt8WeightConfig",
    "Int8StaticActivationInt8WeightConfig",
    "Int8Tensor",
    "Int8WeightOnlyConfig",
]

ACTIVATION_WORDS = {
    None: "",
    "int8_symmetric": ", int8 activations",
    "int8_static": ", static int8 activations",
}


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


@register_config
@dataclass(frozen=True, kw_only=True)
class Int8StaticActivationInt8WeightConfig(AOBaseConfig):
    """int8 weights and int8 activations of one scale, known before: no pass over the activations.

    granularity       of the weight: PerRow() (default), PerAxis(0) (the same) or PerTensor()
    activation_range  the largest magnitude of the activations, which becomes code 127; what is
                      beyond is cut. `with_activation_ranges` fills it in from data, layer by layer
    """

    granularity: Granularity = PerRow()
    activation_range: float | None = None

    def __post_init__(self) -> None:
        name = "Int8StaticActivationInt8WeightConfig"
        check_granularity(name, self.granularity, (PerRow, PerAxis, PerTensor))
        check_activation_range(name, self.activation_range)


@register_tensor
class Int8Tensor(ScaledWeight):
    """codes (..., N, K) int8, scale (..., N or 1, G) float32, x_scale (1, ...) float32 or None."""

    x_scale: Tensor | None

    activations = (None, "int8_symmetric", "int8_static")

    @classmethod
    def from_float(  # type: ignore[override]
        cls,
        w: Tensor,
        *,
        granularity: Granularity = PerRow(),
        activation: str | None = None,
        x_scale: Tensor | None = None,
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
            x_scale=x_scale,
            group_size=group_size,
            activation=activation,
            trailing=trailing,
            shape=shape,
            dtype=w.dtype,
        )

    def requantize(self, w: Tensor) -> "Int8Tensor":
        return self.from_float(
            w.to(self.dtype),
            granularity=self._granularity(),
            activation=self.activation,
            x_scale=self.x_scale,
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
        scales = (torch.float32,)
        check_dtypes(self, {"codes": (torch.int8,), "scale": scales, "x_scale": scales})

    def code_rule(self) -> tuple[int, int]:
        return (1, 1)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.activation is None:
            return int8_linear(x, self.codes, self.scale, self.group_size, bias)
        if self.x_scale is not None:
            return int8_static_linear(x, self.codes, self.scale, self.x_scale, bias)
        return int8_dynamic_linear(x, self.codes, self.scale, bias)

    def grouped_linear(self, x: Tensor, offsets: Tensor) -> Tensor | None:
        if self.activation is None:
            return int8_grouped_linear(x, self.codes, self.scale, self.group_size, offsets, None)
        if self.x_scale is not None:
            return None
        return int8_dynamic_grouped_linear(x, self.codes, self.scale, offsets, None)

    def rows(self, indices: Tensor) -> Tensor:
        return int8_embedding(indices, self.codes, self.scale, self.group_size, self.dtype)

    def describe(self) -> str:
        """The format in a few words, for reports."""
        kind = {PerTensor: "tensor", PerRow: "row"}.get(
            type(self._granularity()), f"group {self.group_size}"
        )
        return f"int8 {kind}" + ACTIVATION_WORDS[self.activation]


@register_handler(Int8WeightOnlyConfig, refuse=refuse)
def _weight_only(w: Tensor, config: Int8WeightOnlyConfig) -> Tensor:
    return Int8Tensor.from_float(w, granularity=config.granularity)


@register_handler(Int8DynamicActivationInt8WeightConfig, refuse=refuse)
def _dynamic(w: Tensor, config: Int8DynamicActivationInt8WeightConfig) -> Tensor:
    return Int8Tensor.from_float(w, granularity=config.granularity, activation="int8_symmetric")


@register_handler(Int8StaticActivationInt8WeightConfig, refuse=refuse_without_range)
def _static(w: Tensor, config: Int8StaticActivationInt8WeightConfig) -> Tensor:
    assert config.activation_range is not None, "refused before"
    x_scale = static_scale(w, config.activation_range, 127)
    return Int8Tensor.from_float(
        w, granularity=config.granularity, activation="int8_static", x_scale=x_scale
    )
