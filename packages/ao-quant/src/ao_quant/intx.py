"""Weights of 1 to 8 bits, packed: weight-only, and with activations quantized on every call.

    w ~ (code - zero) * scale      code in [0, 2**bits - 1]; without a stored zero it is 2**(bits-1)

Four bits have configs of their own in int4.py; the tensor is the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core import numerics
from ao_core.config import AOBaseConfig, register_config
from ao_core.errors import ConfigError
from ao_core.granularity import Granularity, PerAxis, PerGroup, PerRow
from ao_core.packing import pack, unpack
from ao_core.tensor import register_tensor
from ao_core.transform import register_handler
from ao_kernels.ops import (
    float8_int4_grouped_linear,
    float8_int4_linear,
    int4_grouped_linear,
    int4_linear,
    int8_dynamic_int4_linear,
    int8_dynamic_intx_linear,
    intx_embedding,
    intx_grouped_linear,
    intx_linear,
)

from .weight import (
    ScaledWeight,
    check_dtypes,
    check_granularity,
    chunked_rows,
    group_size_of,
    joined,
    refuse,
    without_trailing,
)

__all__ = ["Int8DynamicActivationIntxWeightConfig", "IntxTensor", "IntxWeightOnlyConfig"]

BITS = {getattr(torch, f"int{bits}"): bits for bits in range(1, 9)}
ALGORITHMS = ("minmax", "hqq")


def check_intx_config(
    config: str, dtype: torch.dtype, granularity: Granularity, mapping: str, algorithm: str
) -> None:
    """ConfigError for any value that no integer weight can have."""
    if dtype not in BITS:
        raise ConfigError(f"{config}: weight_dtype is torch.int1 to torch.int8, got {dtype!r}")
    check_granularity(config, granularity, (PerGroup, PerRow, PerAxis))
    if mapping not in numerics.MAPPINGS:
        raise ConfigError(
            f"{config}: the mapping type is {' or '.join(map(repr, numerics.MAPPINGS))}, got "
            f"{mapping!r}"
        )
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"{config}: algorithm is {' or '.join(map(repr, ALGORITHMS))}, got {algorithm!r}"
        )


@register_config
@dataclass(frozen=True, kw_only=True)
class IntxWeightOnlyConfig(AOBaseConfig):
    """Weights of 1 to 8 bits, float activations.

    weight_dtype  torch.int1 to torch.int8
    granularity   PerRow(), PerAxis(0) (the same) or PerGroup(n), n a multiple of 8
    mapping_type  "symmetric" (no zero point) or "asymmetric"; "hqq" chooses its own zero
    algorithm     "minmax" (from the extremes) or "hqq" (searches scale and zero for the smallest
                  error)
    """

    weight_dtype: torch.dtype = torch.int8
    granularity: Granularity = PerAxis(0)
    mapping_type: str = "symmetric"
    algorithm: str = "minmax"

    def __post_init__(self) -> None:
        check_intx_config(
            "IntxWeightOnlyConfig",
            self.weight_dtype,
            self.granularity,
            self.mapping_type,
            self.algorithm,
        )


@register_config
@dataclass(frozen=True, kw_only=True)
class Int8DynamicActivationIntxWeightConfig(AOBaseConfig):
    """Weights of 1 to 8 bits; activations quantized to int8, asymmetric, one scale a token, on
    every call.

    weight_dtype         torch.int1 to torch.int8
    weight_granularity   PerRow(), PerAxis(0) (the same) or PerGroup(n), n a multiple of 8
    weight_mapping_type  "symmetric" or "asymmetric"
    algorithm            "minmax" or "hqq", as in IntxWeightOnlyConfig
    """

    weight_dtype: torch.dtype = torch.int8
    weight_granularity: Granularity = PerGroup(32)
    weight_mapping_type: str = "symmetric"
    algorithm: str = "minmax"

    def __post_init__(self) -> None:
        name = "Int8DynamicActivationIntxWeightConfig"
        check_intx_config(
            name,
            self.weight_dtype,
            self.weight_granularity,
            self.weight_mapping_type,
            self.algorithm,
        )


@register_tensor
class IntxTensor(ScaledWeight):
    """codes (..., N, ceil(K/8)*bits) uint8, scale (..., N, G) bfloat16, zero like scale or None.

    mapping, algorithm: how scale and zero were chosen, so that `requantize` needs no argument.
    """

    zero: Tensor | None
    bits: int
    mapping: str
    algorithm: str

    activations = (None, "int8_asymmetric", "float8_row")  # the last with 4 bits only

    @classmethod
    def from_float(  # type: ignore[override]
        cls,
        w: Tensor,
        *,
        bits: int,
        granularity: Granularity = PerRow(),
        mapping: str = "symmetric",
        algorithm: str = "minmax",
        activation: str | None = None,
    ) -> "IntxTensor":
        """Quantize w, (N, K), (E, N, K) or a 1x1 convolution's (N, K, 1, ...)."""
        shape, (w, trailing) = w.shape, without_trailing(w)
        group_size = group_size_of(granularity, w.shape[-1])
        codes, scales, zeros = [], [], []
        zero: Tensor | None
        for rows in chunked_rows(w):
            if algorithm == "hqq":
                scale, zero = numerics.optimize_intx_qparams(rows, bits=bits, group_size=group_size)
            else:
                scale, zero = numerics.choose_intx_qparams(
                    rows, bits=bits, group_size=group_size, mapping=mapping
                )
            values = numerics.quantize_intx(rows, scale, zero, bits=bits, group_size=group_size)
            codes.append(pack(values, bits, pad=2 ** (bits - 1)))
            scales.append(scale)
            zeros += [] if zero is None else [zero]
        return cls(
            codes=joined(codes, w, trailing),
            scale=joined(scales, w, trailing),
            zero=joined(zeros, w, trailing) if zeros else None,
            group_size=group_size,
            activation=activation,
            trailing=trailing,
            bits=bits,
            mapping=mapping,
            algorithm=algorithm,
            shape=shape,
            dtype=w.dtype,
        )

    def requantize(self, w: Tensor) -> "IntxTensor":
        return self.from_float(
            w.to(self.dtype),
            bits=self.bits,
            granularity=PerGroup(self.group_size),
            mapping=self.mapping,
            algorithm=self.algorithm,
            activation=self.activation,
        )

    def dequantize(self) -> Tensor:
        plain = self.flat()
        assert isinstance(plain, IntxTensor)
        length = plain.shape[-2] if self.transposed else plain.shape[-1]
        codes = unpack(plain.codes, self.bits, length)
        w = numerics.dequantize_intx(
            codes,
            plain.scale,
            plain.zero,
            bits=self.bits,
            group_size=self.group_size,
            dtype=self.dtype,
        )
        return w.mT if self.transposed else w.reshape(self.shape)

    def check(self) -> None:
        if self.bits not in range(1, 9):
            raise ValueError(f"bits is {self.bits!r}, not 1 to 8")
        if self.mapping not in numerics.MAPPINGS or self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown mapping {self.mapping!r} or algorithm {self.algorithm!r}")
        if self.activation == "float8_row" and self.bits != 4:
            raise ValueError(f"float8 activations go with 4 bits, got {self.bits}")
        super().check()
        scales = (torch.bfloat16, torch.float32)
        check_dtypes(self, {"codes": (torch.uint8,), "scale": scales, "zero": scales})

    def code_rule(self) -> tuple[int, int]:
        return (8, self.bits)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.activation is None:
            if self.bits == 4:
                return int4_linear(x, self.codes, self.scale, self.zero, self.group_size, bias)
            return intx_linear(
                x, self.codes, self.scale, self.zero, self.bits, self.group_size, bias
            )
        if self.activation == "float8_row":
            return float8_int4_linear(x, self.codes, self.scale, self.zero, self.group_size, bias)
        if self.bits == 4:
            return int8_dynamic_int4_linear(
                x, self.codes, self.scale, self.zero, self.group_size, bias
            )
        return int8_dynamic_intx_linear(
            x, self.codes, self.scale, self.zero, self.bits, self.group_size, bias
        )

    def grouped_linear(self, x: Tensor, offsets: Tensor) -> Tensor | None:
        fields = (self.codes, self.scale, self.zero)
        if self.activation == "float8_row":
            return float8_int4_grouped_linear(x, *fields, self.group_size, offsets, None)
        if self.activation is not None:
            return None
        if self.bits == 4:
            return int4_grouped_linear(x, *fields, self.group_size, offsets, None)
        return intx_grouped_linear(x, *fields, self.bits, self.group_size, offsets, None)

    def rows(self, indices: Tensor) -> Tensor:
        return intx_embedding(
            indices,
            self.codes,
            self.scale,
            self.zero,
            self.bits,
            self.group_size,
            self.shape[-1],
            self.dtype,
        )

    def describe(self) -> str:
        """The format in a few words, for reports."""
        length = self.flat().shape[-2 if self.transposed else -1]
        kind = "row" if self.group_size >= length else f"group {self.group_size}"
        how = self.algorithm if self.algorithm != "minmax" else self.mapping
        dtype = str(self.activation).partition("_")[0]
        return f"int{self.bits} {kind} {how}" + (
            f", {dtype} activations" if self.activation else ""
        )


@register_handler(IntxWeightOnlyConfig, refuse=refuse)
def _weight_only(w: Tensor, config: IntxWeightOnlyConfig) -> Tensor:
    return IntxTensor.from_float(
        w,
        bits=BITS[config.weight_dtype],
        granularity=config.granularity,
        mapping=config.mapping_type,
        algorithm=config.algorithm,
    )


@register_handler(Int8DynamicActivationIntxWeightConfig, refuse=refuse)
def _dynamic(w: Tensor, config: Int8DynamicActivationIntxWeightConfig) -> Tensor:
    return IntxTensor.from_float(
        w,
        bits=BITS[config.weight_dtype],
        granularity=config.weight_granularity,
        mapping=config.weight_mapping_type,
        algorithm=config.algorithm,
        activation="int8_asymmetric",
    )
