"""ao-quant: quantize the weights of PyTorch models.

    from ao_quant import Int4WeightOnlyConfig, quantize_
    report = quantize_(model, Int4WeightOnlyConfig())

The report says what became what, what was left alone, and why.
"""

from importlib.metadata import PackageNotFoundError, version

from ao_core.granularity import PerAxis, PerBlock, PerGroup, PerRow, PerTensor
from ao_core.match import FqnToConfig
from ao_core.report import Report

from .activation_ranges import observe_activations, with_activation_ranges
from .float8 import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
)
from .int4 import (
    Float8DynamicActivationInt4WeightConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
)
from .int8 import (
    Int8DynamicActivationInt8WeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
)
from .intx import Int8DynamicActivationIntxWeightConfig, IntxTensor, IntxWeightOnlyConfig
from .quantize import quantize_

try:
    __version__ = version("ao-quant")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Float8DynamicActivationFloat8WeightConfig",
    "Float8DynamicActivationInt4WeightConfig",
    "Float8StaticActivationFloat8WeightConfig",
    "Float8Tensor",
    "Float8WeightOnlyConfig",
    "FqnToConfig",
    "Int4WeightOnlyConfig",
    "Int8DynamicActivationInt4WeightConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8DynamicActivationIntxWeightConfig",
    "Int8StaticActivationInt8WeightConfig",
    "Int8Tensor",
    "Int8WeightOnlyConfig",
    "IntxTensor",
    "IntxWeightOnlyConfig",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "Report",
    "__version__",
    "observe_activations",
    "quantize_",
    "with_activation_ranges",
]
