"""float8 weights: weight-only, and with activations quantized to float8.

w ~ code * scale      code float8 e4m3 or e5m2; scale float32 a tensor, a row, a group of a row
                      or a block
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core import numerics
from ao_core.config import AOBaseConfig, register_config
from ao_core.errors import ConfigError, UnsupportedOpError
from ao_core.formats import get_format
from ao_core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerRow, PerTensor
from ao_core.tensor import Dim, register_tensor
from ao_core.transform import register_handler
from ao_kernels.ops import (
    float8_dynamic_grouped_linear,
    float8_dynamic_linear,
    float8_embedding,
    float8_grouped_linear,
    float8_linear,
    float8_static_linear,
)

from .activation_ranges import check_activation_range, refuse_without_range
from .weight import (
    ScaledWeight,
    check_dtypes,
    check_granularity,
    refuse,
    rows_at_a_time,
    static_scale,
    without_trailing,
)

__all__ = [
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8StaticActivationFloat8WeightConfig",
    "Float8Tensor",
    "Float8WeightOnlyConfig",
]

E4M3 = get_format("float8_e4m3")
NAMES = {get_format(f"float8_{kind}").storage: kind for kind in ("e4m3", "e5m2")}
BLOCK = PerBlock((128, 128))
WHOLE = 1 << 30  # a block as large as any tensor; asking for its size takes 0.8 us a call
OF_ONE_SCALE = {"float8_tensor": "tensor", "float8_row": "row", "float8_block": "block"}
ACTIVATION_WORDS = {
    None: "",
    "float8_tensor": ", float8 activations",
    "float8_row": ", float8 activations",
    "float8_block": ", float8 activations",
    "float8_static": ", static float8 activations",
}


@register_config
@dataclass(frozen=True, kw_only=True)
class Float8WeightOnlyConfig(AOBaseConfig):
    """float8 weights, float activations: half the bytes of bfloat16.

    weight_dtype  torch.float8_e4m3fn (default) or torch.float8_e5m2
    granularity   PerRow() (default), PerAxis(0) (the same), PerTensor(), PerGroup(n) or
                  PerBlock((m, n)), n a multiple of 8
    """

    weight_dtype: torch.dtype = torch.float8_e4m3fn
    granularity: Granularity = PerRow()

    def __post_init__(self) -> None:
        if self.weight_dtype not in NAMES:
            raise ConfigError(
                f"Float8WeightOnlyConfig: weight_dtype is {' or '.join(map(str, NAMES))}, got "
                f"{self.weight_dtype!r}"
            )
        check_granularity(
            "Float8WeightOnlyConfig",
            self.granularity,
            (PerRow, PerAxis, PerTensor, PerGroup, PerBlock),
        )


@register_config
@dataclass(frozen=True, kw_only=True)
class Float8DynamicActivationFloat8WeightConfig(AOBaseConfig):
    """float8 e4m3 weights and activations; the scales of activations are found on every call.

    granularity  PerTensor() (default): one scale for the weight, one for all activations of a call
                 PerRow(): one for each output feature, one for each token
                 PerBlock((128, 128)): one for each block, one for 128 input features of a token
    """

    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        name = "Float8DynamicActivationFloat8WeightConfig"
        check_granularity(name, self.granularity, (PerTensor, PerRow, PerBlock))
        if isinstance(self.granularity, PerBlock) and self.granularity != BLOCK:
            raise ConfigError(f"{name}: blocks are {BLOCK!r}, got {self.granularity!r}")


@register_config
@dataclass(frozen=True, kw_only=True)
class Float8StaticActivationFloat8WeightConfig(AOBaseConfig):
    """float8 e4m3 weights and activations of one scale, known before: no pass over the activations.

    granularity       of the weight: PerTensor() (default) or PerRow()
    activation_range  the largest magnitude of the activations, which becomes code 448; what is
                      beyond is cut. `with_activation_ranges` fills it in from data, layer by layer
    """

    granularity: Granularity = PerTensor()
    activation_range: float | None = None

    def __post_init__(self) -> None:
        name = "Float8StaticActivationFloat8WeightConfig"
        check_granularity(name, self.granularity, (PerTensor, PerRow))
        check_activation_range(name, self.activation_range)


@register_tensor
class Float8Tensor(ScaledWeight):
    """codes (..., N, K) float8, scale (..., ceil(N / block_rows), ceil(K / group_size)) float32,
    x_scale (1, ...) float32 or None.

    block_rows  output features that share a scale; None: all, and all experts
    group_size  input features that share a scale; None: all

    None rather than N or K, because a part of the weight has all of its own too.
    """

    group_size: int | None  # type: ignore[assignment]
    x_scale: Tensor | None
    block_rows: int | None

    activations = tuple(ACTIVATION_WORDS)

    @classmethod
    def from_float(  # type: ignore[override]
        cls,
        w: Tensor,
        *,
        weight_dtype: torch.dtype = torch.float8_e4m3fn,
        granularity: Granularity = PerRow(),
        activation: str | None = None,
        x_scale: Tensor | None = None,
    ) -> "Float8Tensor":
        """Quantize w, (N, K), (E, N, K) or a 1x1 convolution's (N, K, 1, ...)."""
        block_rows: int | None = 1
        group_size: int | None = None
        match granularity:
            case PerTensor():
                block_rows = None
            case PerGroup(group_size=n):
                group_size = n
            case PerBlock(block_size=(m, n)):
                block_rows, group_size = m, n
        return cls._from_float(w, weight_dtype, block_rows, group_size, activation, x_scale)

    @classmethod
    def _from_float(
        cls,
        w: Tensor,
        dtype: torch.dtype,
        block_rows: int | None,
        group_size: int | None,
        activation: str | None,
        x_scale: Tensor | None,
    ) -> "Float8Tensor":
        shape, (w, trailing) = w.shape, without_trailing(w)
        *lead, n_rows, length = w.shape
        codes = torch.empty(w.shape, dtype=dtype, device=w.device)
        step = rows_at_a_time(w)
        width = group_size or max(length, 1)
        if block_rows is None:
            scale = _whole_scale(w, step, dtype)
        else:
            step = -(-step // block_rows) * block_rows
            blocks = (numerics.groups(n_rows, block_rows), numerics.groups(length, width))
            scale = w.new_empty(*lead, *blocks, dtype=torch.float32)
        flat_scale = scale.reshape(-1, *scale.shape[-2:])
        for e, w_NK in enumerate(w.reshape(-1, n_rows, length)):
            for at in range(0, n_rows, step):
                rows = w_NK[at : at + step]
                if block_rows is None:
                    block, part = (len(rows), length), flat_scale[0]
                else:
                    block = (block_rows, width)
                    part = numerics.choose_float8_scale(rows, block=block, dtype=dtype)
                    flat_scale[e, at // block_rows :][: len(part)] = part
                values = numerics.quantize_float8(rows, part, block=block, dtype=dtype)
                codes.view(-1, n_rows, length)[e, at : at + step] = values
        ones = (1,) * trailing
        return cls(
            codes=codes.reshape(*codes.shape, *ones),
            scale=scale.reshape(*scale.shape, *ones),
            x_scale=x_scale,
            group_size=group_size,
            activation=activation,
            trailing=trailing,
            block_rows=block_rows,
            shape=shape,
            dtype=w.dtype,
        )

    def requantize(self, w: Tensor) -> "Float8Tensor":
        return self._from_float(
            w.to(self.dtype),
            self.codes.dtype,
            self.block_rows,
            self.group_size,
            self.activation,
            self.x_scale,
        )

    def dequantize(self) -> Tensor:
        plain = self.flat()
        if plain.codes.dim() < 2:
            raise UnsupportedOpError(
                "a flattened Float8Tensor has no blocks and so no values; dequantize() it in its "
                "own shape"
            )
        *lead, n_rows, length = plain.codes.shape
        rows = (*lead, n_rows) if self.block_rows is None else (*(1,) * len(lead), self.block_rows)
        w = numerics.dequantize_float8(
            plain.codes,
            plain.scale,
            block=(*rows, self.group_size or max(length, 1)),
            dtype=self.dtype,
        )
        return w.mT if self.transposed else w.reshape(self.shape)

    def check_groups(self) -> None:
        for name, size in (("block_rows", self.block_rows), ("group_size", self.group_size)):
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size!r}, not a positive integer or None")

    def check(self) -> None:
        super().check()
        scales = (torch.float32,)
        check_dtypes(self, {"codes": tuple(NAMES), "scale": scales, "x_scale": scales})

    def code_rule(self) -> tuple[int, int]:
        return (1, 1)

    def scale_rule(self) -> tuple[Dim, ...]:
        n_lead = self.codes.dim() - 1 - self.trailing
        if self.block_rows is None:
            return (None,) * n_lead
        return (*(1,) * (n_lead - 1), self.block_rows)[:n_lead]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        blocks = self._blocks()
        if self.activation is None:
            return float8_linear(x, self.codes, self.scale, *blocks, bias)
        if self.x_scale is not None:
            return float8_static_linear(x, self.codes, self.scale, self.x_scale, *blocks, bias)
        activation = OF_ONE_SCALE[self.activation]
        return float8_dynamic_linear(x, self.codes, self.scale, *blocks, activation, bias)

    def grouped_linear(self, x: Tensor, offsets: Tensor) -> Tensor | None:
        weight = (self.codes, self.scale, *self._blocks())
        if self.activation is None:
            return float8_grouped_linear(x, *weight, offsets, None)
        if self.x_scale is not None:
            return None
        activation = OF_ONE_SCALE[self.activation]
        return float8_dynamic_grouped_linear(x, *weight, activation, offsets, None)

    def rows(self, indices: Tensor) -> Tensor:
        return float8_embedding(indices, self.codes, self.scale, *self._blocks(), self.dtype)

    def _blocks(self) -> tuple[int, int]:
        return self.block_rows or WHOLE, self.group_size or WHOLE

    def describe(self) -> str:
        """The format in a few words, for reports."""
        if self.block_rows is None:
            kind = "tensor"
        elif self.group_size is None:
            kind = "row"
        elif self.block_rows == 1:
            kind = f"group {self.group_size}"
        else:
            kind = f"block {self.block_rows}x{self.group_size}"
        return f"float8 {NAMES[self.codes.dtype]} {kind}" + ACTIVATION_WORDS[self.activation]


def _whole_scale(w: Tensor, step: int, dtype: torch.dtype) -> Tensor:
    """One scale for w (..., N, K), with as many dimensions."""
    chunks = w.reshape(-1, w.shape[-1]).split(step)
    largest = [rows.abs().amax().float() for rows in chunks if rows.numel()]
    amax = torch.stack(largest).amax() if largest else w.new_zeros((), dtype=torch.float32)
    scale = numerics.choose_float8_scale(amax.reshape(1), block=(1,), dtype=dtype)
    return scale.reshape((1,) * w.dim())


@register_handler(Float8WeightOnlyConfig, refuse=refuse)
def _weight_only(w: Tensor, config: Float8WeightOnlyConfig) -> Tensor:
    return Float8Tensor.from_float(
        w, weight_dtype=config.weight_dtype, granularity=config.granularity
    )


@register_handler(Float8DynamicActivationFloat8WeightConfig, refuse=refuse)
def _dynamic(w: Tensor, config: Float8DynamicActivationFloat8WeightConfig) -> Tensor:
    kind = {PerTensor: "tensor", PerRow: "row", PerBlock: "block"}[type(config.granularity)]
    return Float8Tensor.from_float(w, granularity=config.granularity, activation=f"float8_{kind}")


@register_handler(Float8StaticActivationFloat8WeightConfig, refuse=refuse_without_range)
def _static(w: Tensor, config: Float8StaticActivationFloat8WeightConfig) -> Tensor:
    assert config.activation_range is not None, "refused before"
    x_scale = static_scale(w, config.activation_range, E4M3.high)
    return Float8Tensor.from_float(
        w, granularity=config.granularity, activation="float8_static", x_scale=x_scale
    )
