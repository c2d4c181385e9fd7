"""The maps of the moments; they live in `ao_core.moments`, where the kernels find them, too."""

from ao_core.moments import (
    FORMATS,
    MomentFormat,
    StateBits,
    code_values,
    dequantize_moment,
    get_format,
    quantize_moment,
)

__all__ = [
    "FORMATS",
    "MomentFormat",
    "StateBits",
    "code_values",
    "dequantize_moment",
    "get_format",
    "quantize_moment",
]
