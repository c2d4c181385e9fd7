"""The grouped linears against their float64 references, on a CPU."""

from typing import Any

import pytest
import torch
from float8_samples import OnReference
from grouped_contract import (
    Float8,
    Float8Dynamic,
    Float8Int4,
    Grouped,
    Int4,
    Int8,
    Int8Dynamic,
    Intx,
    refused_alike,
)

from ao_core.testing.op_contract import OpContract


class TestInt4(Int4, Grouped, OpContract):
    pass


class TestIntx(Intx, Grouped, OpContract):
    pass


class TestInt8(Int8, Grouped, OpContract):
    pass


class TestInt8Dynamic(Int8Dynamic, Grouped, OpContract):
    pass


class TestFloat8(Float8, Grouped, OnReference):
    pass


class TestFloat8Dynamic(Float8Dynamic, Grouped, OnReference):
    pass


class TestFloat8Int4(Float8Int4, Grouped, OnReference):
    pass


@pytest.mark.parametrize("case", [Int4, Intx, Int8, Int8Dynamic, Float8, Float8Dynamic, Float8Int4])
def test_refusals_are_in_the_callers_words(case: Any) -> None:
    refused_alike(case.op, next(case().calls(torch.bfloat16)).args)
