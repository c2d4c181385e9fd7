"""int4 weights: the configs. The tensor is IntxTensor with bits=4 (intx.py); docs/formats.md has
its bytes.

Its kernels are ao_kernels' int4_linear, int8_dynamic_int4_linear and float8_int4_linear.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ao_core.config import AOBaseConfig, register_config
from ao_core.granularity import PerGroup
from ao_core.transform import register_handler

from .intx import IntxTensor, check_intx_config
from .weight import refuse

INT4: torch.dtype = getattr(torch, "int4")  # noqa: B009  absent from torch's stubs

__all__ = [
    "Float8DynamicActivationInt4WeightConfig",
    "Int4WeightOnlyConfig",
    "Int8DynamicActivationInt4WeightConfig",
]


@register_config
@dataclass(frozen=True, kw_only=True)
class Int4WeightOnlyConfig(AOBaseConfig):
    """int4 weights, float activations: a quarter of bfloat16's bytes, the fastest at few tokens.

    group_size  consecutive input features that share a scale; a multiple of 8
    algorithm   "minmax": symmetric, the largest weight of a group sets the scale
                "hqq": searches scale and a fractional zero for the smallest error; better and
                slower to convert
    """

    group_size: int = 128
    algorithm: str = "minmax"

    def __post_init__(self) -> None:
        granularity = PerGroup(self.group_size)
        check_intx_config("Int4WeightOnlyConfig", INT4, granularity, "symmetric", self.algorithm)


@register_config
@dataclass(frozen=True, kw_only=True)
class Int8DynamicActivationInt4WeightConfig(AOBaseConfig):
    """int4 weights; activations quantized to int8, asymmetric, one scale a token, on every call
    ("8da4w").

    group_size  consecutive input features that share a weight scale; a multiple of 8
    """

    group_size: int = 32

    def __post_init__(self) -> None:
        granularity = PerGroup(self.group_size)
        check_intx_config(
            "Int8DynamicActivationInt4WeightConfig", INT4, granularity, "symmetric", "minmax"
        )


@register_config
@dataclass(frozen=True, kw_only=True)
class Float8DynamicActivationInt4WeightConfig(AOBaseConfig):
    """int4 weights; activations quantized to float8 e4m3, one scale a token, on every call.

    group_size  consecutive input features that share a weight scale; a multiple of 8
    """

    group_size: int = 128

    def __post_init__(self) -> None:
        granularity = PerGroup(self.group_size)
        check_intx_config(
            "Float8DynamicActivationInt4WeightConfig", INT4, granularity, "symmetric", "minmax"
        )


@register_handler(Int4WeightOnlyConfig, refuse=refuse)
def _weight_only(w: Tensor, config: Int4WeightOnlyConfig) -> Tensor:
    return IntxTensor.from_float(
        w, bits=4, granularity=PerGroup(config.group_size), algorithm=config.algorithm
    )


@register_handler(Int8DynamicActivationInt4WeightConfig, refuse=refuse)
def _dynamic(w: Tensor, config: Int8DynamicActivationInt4WeightConfig) -> Tensor:
    return IntxTensor.from_float(
        w, bits=4, granularity=PerGroup(config.group_size), activation="int8_asymmetric"
    )


@register_handler(Float8DynamicActivationInt4WeightConfig, refuse=refuse)
def _float8_dynamic(w: Tensor, config: Float8DynamicActivationInt4WeightConfig) -> Tensor:
    return IntxTensor.from_float(
        w, bits=4, granularity=PerGroup(config.group_size), activation="float8_row"
    )
