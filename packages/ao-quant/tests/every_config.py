"""A config of each kind of format, and the devices that tests of all of them run on."""

import pytest
import torch

from ao_core.config import AOBaseConfig
from ao_quant import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8DynamicActivationInt4WeightConfig,
    Float8StaticActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
)

CONFIGS: dict[
    str, tuple[AOBaseConfig, float, str]
] = {  # config, least SQNR of a two-layer model in dB, what reports say
    "int8": (Int8WeightOnlyConfig(), 40, "int8 row"),
    "int8 tensor": (Int8WeightOnlyConfig(granularity=PerTensor()), 38, "int8 tensor"),
    "int8 group": (Int8WeightOnlyConfig(granularity=PerGroup(32)), 40, "int8 group 32"),
    "int8 dynamic": (Int8DynamicActivationInt8WeightConfig(), 36, "int8 row, int8 activations"),
    "int4": (Int4WeightOnlyConfig(group_size=32), 17, "int4 group 32 symmetric"),
    "int4 hqq": (Int4WeightOnlyConfig(group_size=64, algorithm="hqq"), 18, "int4 group 64 hqq"),
    "8da4w": (
        Int8DynamicActivationInt4WeightConfig(),
        17,
        "int4 group 32 symmetric, int8 activations",
    ),
    "int1": (
        IntxWeightOnlyConfig(weight_dtype=torch.int1, granularity=PerGroup(32)),
        1,
        "int1 group 32 symmetric",
    ),
    "int2": (
        IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(32), algorithm="hqq"),
        6,
        "int2 group 32 hqq",
    ),
    "int3": (
        IntxWeightOnlyConfig(
            weight_dtype=torch.int3, granularity=PerGroup(32), mapping_type="asymmetric"
        ),
        11,
        "int3 group 32 asymmetric",
    ),
    "int5": (IntxWeightOnlyConfig(weight_dtype=torch.int5), 20, "int5 row symmetric"),
    "int6": (
        IntxWeightOnlyConfig(weight_dtype=torch.int6, granularity=PerRow()),
        26,
        "int6 row symmetric",
    ),
    "int7": (
        IntxWeightOnlyConfig(weight_dtype=torch.int7, granularity=PerAxis(0)),
        32,
        "int7 row symmetric",
    ),
    "intx8": (IntxWeightOnlyConfig(mapping_type="asymmetric"), 36, "int8 row asymmetric"),
    "int6 dynamic": (
        Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int6),
        28,
        "int6 group 32 symmetric, int8 activations",
    ),
    "int8 static": (
        Int8StaticActivationInt8WeightConfig(activation_range=5.0),
        27,
        "int8 row, static int8 activations",
    ),
    "float8": (Float8WeightOnlyConfig(), 28, "float8 e4m3 row"),
    "float8 tensor": (Float8WeightOnlyConfig(granularity=PerTensor()), 28, "float8 e4m3 tensor"),
    "float8 e5m2": (
        Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2, granularity=PerGroup(32)),
        23,
        "float8 e5m2 group 32",
    ),
    "float8 block": (
        Float8WeightOnlyConfig(granularity=PerBlock((64, 32))),
        28,
        "float8 e4m3 block 64x32",
    ),
    "float8 dynamic": (
        Float8DynamicActivationFloat8WeightConfig(),
        25,
        "float8 e4m3 tensor, float8 activations",
    ),
    "float8 dynamic row": (
        Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
        25,
        "float8 e4m3 row, float8 activations",
    ),
    "float8 dynamic block": (
        Float8DynamicActivationFloat8WeightConfig(granularity=PerBlock((128, 128))),
        25,
        "float8 e4m3 block 128x128, float8 activations",
    ),
    "float8 static": (
        Float8StaticActivationFloat8WeightConfig(activation_range=5.0),
        25,
        "float8 e4m3 tensor, static float8 activations",
    ),
    "float8 int4": (
        Float8DynamicActivationInt4WeightConfig(group_size=32),
        17,
        "int4 group 32 symmetric, float8 activations",
    ),
}
EACH = pytest.mark.parametrize("name", list(CONFIGS))
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
)
