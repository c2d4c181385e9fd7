"""FSDP2 and DTensor sharding of every format, two gloo processes on the loopback."""

import functools

from ao_core.testing.sharding_contract import check_formats, run_two_processes
from ao_quant import Int8Tensor, IntxTensor, PerGroup, PerTensor

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
}


def test_sharding() -> None:
    run_two_processes(check_formats, FORMATS)
