"""int8 weights."""

import torch
from torch import Tensor

from ao_core.testing.tensor_contract import QTensorContract
from ao_quant import Int8Tensor, PerGroup, PerRow, PerTensor


class TestPerRow(QTensorContract):
    min_sqnr_db = 40

    def make(self, w: Tensor) -> Int8Tensor:
        return Int8Tensor.from_float(w, granularity=PerRow())


class TestPerTensor(QTensorContract):
    min_sqnr_db = 38

    def make(self, w: Tensor) -> Int8Tensor:
        return Int8Tensor.from_float(w, granularity=PerTensor())

    def test_views_share_storage(self) -> None:
        """Rows of a per-tensor weight share one scale with the rest, so a part cannot be
        requantized alone."""
        q = self.make(torch.ones(16, 128))
        assert q[4:8].scale.data_ptr() == q.scale.data_ptr()


class TestPerGroup(QTensorContract):
    min_sqnr_db = 40
    cut = 32

    def make(self, w: Tensor) -> Int8Tensor:
        return Int8Tensor.from_float(w, granularity=PerGroup(32))


class TestDynamic(QTensorContract):
    min_sqnr_db = 40
    min_linear_db = 36
    dynamic = True

    def make(self, w: Tensor) -> Int8Tensor:
        return Int8Tensor.from_float(w, activation="int8_symmetric")


class TestStatic(QTensorContract):
    min_sqnr_db = 40
    min_linear_db = 32
    dynamic = True

    def make(self, w: Tensor) -> Int8Tensor:
        x_scale = torch.full((1,) * w.dim(), 4.5 / 127)
        return Int8Tensor.from_float(w, activation="int8_static", x_scale=x_scale)


def test_every_code_is_its_own_image() -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8)[None]
    q = Int8Tensor.from_float(codes.float() * 0.5)
    assert torch.equal(q.codes, codes) and q.scale.item() == 0.5
