"""Weights of 1 to 8 bits."""

import pytest
import torch
from torch import Tensor

from ao_core.packing import unpack
from ao_core.testing.tensor_contract import QTensorContract
from ao_quant import IntxTensor, PerGroup, PerRow


class TestInt4(QTensorContract):
    min_sqnr_db = 19
    cut = 32

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=4, granularity=PerGroup(32))


class TestInt4Hqq(QTensorContract):
    min_sqnr_db = 20

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=4, granularity=PerGroup(64), algorithm="hqq")


class TestInt4Row(QTensorContract):
    min_sqnr_db = 16

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=4, granularity=PerRow())


class Test8da4w(QTensorContract):
    min_sqnr_db = 19
    min_linear_db = 36
    cut = 32
    dynamic = True

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(
            w, bits=4, granularity=PerGroup(32), activation="int8_asymmetric"
        )


class TestFloat8Int4(QTensorContract):
    min_sqnr_db = 19
    min_linear_db = 28
    cut = 32
    dynamic = True

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=4, granularity=PerGroup(32), activation="float8_row")


class TestInt1(QTensorContract):
    min_sqnr_db = 4
    cut = 32

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=1, granularity=PerGroup(32))


class TestInt3Asymmetric(QTensorContract):
    min_sqnr_db = 13
    cut = 32

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(w, bits=3, granularity=PerGroup(32), mapping="asymmetric")


class TestIntx8Dynamic(QTensorContract):
    min_sqnr_db = 40
    min_linear_db = 36
    cut = 32
    dynamic = True

    def make(self, w: Tensor) -> IntxTensor:
        return IntxTensor.from_float(
            w, bits=8, granularity=PerGroup(32), activation="int8_asymmetric"
        )


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_is_its_own_image(bits: int) -> None:
    """All codes of a width come back from the values that they stand for."""
    codes = torch.arange(2**bits, dtype=torch.uint8)
    zero = 0.5 if bits == 1 else float(2 ** (bits - 1))
    w = ((codes - zero) * 0.25).repeat(8 // len(codes) or 1)[None]
    q = IntxTensor.from_float(w, bits=bits)
    assert q.zero is None or bits == 1
    assert torch.equal(unpack(q.codes, bits, w.shape[1]), codes.repeat(8 // len(codes) or 1)[None])
    assert torch.equal(q.dequantize(), w)
