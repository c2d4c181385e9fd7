"""FSDP2 and DTensor sharding of every format: two gloo processes on the loopback, two GPUs."""

import functools

import pytest
import torch

from ao_core.testing.sharding_contract import check_formats, run_two_processes
from ao_quant import Float8Tensor, Int8Tensor, IntxTensor, PerBlock, PerGroup, PerTensor

X_SCALE = torch.full((1, 1), 4 / 448)
float8 = Float8Tensor.from_float
int4 = functools.partial(IntxTensor.from_float, bits=4, granularity=PerGroup(32))

FORMATS = {
    "int8 row": Int8Tensor.from_float,
    "int8 tensor": functools.partial(Int8Tensor.from_float, granularity=PerTensor()),
    "int8 group": functools.partial(Int8Tensor.from_float, granularity=PerGroup(32)),
    "int8 dynamic": functools.partial(Int8Tensor.from_float, activation="int8_symmetric"),
    "int4": int4,
    "int4 hqq": functools.partial(int4, algorithm="hqq"),
    "int4 row": functools.partial(IntxTensor.from_float, bits=4),
    "int3 asymmetric": functools.partial(
        IntxTensor.from_float, bits=3, granularity=PerGroup(32), mapping="asymmetric"
    ),
    "8da4w": functools.partial(int4, activation="int8_asymmetric"),
    "intx8 dynamic": functools.partial(
        IntxTensor.from_float, bits=8, granularity=PerGroup(32), activation="int8_asymmetric"
    ),
    "int8 static": functools.partial(
        Int8Tensor.from_float, activation="int8_static", x_scale=X_SCALE
    ),
    "float8": float8,
    "float8 e5m2": functools.partial(
        float8, weight_dtype=torch.float8_e5m2, granularity=PerGroup(32)
    ),
    "float8 block": functools.partial(
        float8, granularity=PerBlock((16, 32)), activation="float8_block"
    ),
    "float8 large block": functools.partial(float8, granularity=PerBlock((128, 128))),
    "float8 tensor": functools.partial(float8, granularity=PerTensor(), activation="float8_tensor"),
    "float8 row": functools.partial(float8, activation="float8_row"),
    "float8 static": functools.partial(
        float8, granularity=PerTensor(), activation="float8_static", x_scale=X_SCALE
    ),
    "float8 int4": functools.partial(int4, activation="float8_row"),
}


def test_sharding() -> None:
    run_two_processes(check_formats, FORMATS)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device for each process")
def test_sharding_on_two_gpus() -> None:
    run_two_processes(check_formats, FORMATS, device="cuda")
