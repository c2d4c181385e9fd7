"""float8 weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ao_core.errors import UnsupportedOpError
from ao_core.numerics import choose_float8_scale, dequantize_float8, quantize_float8
from ao_core.testing.tensor_contract import QTensorContract, same, weight
from ao_quant import Float8Tensor, PerBlock, PerGroup, PerRow, PerTensor


class TestPerRow(QTensorContract):
    min_sqnr_db = 30

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w)


class TestE5m2(QTensorContract):
    min_sqnr_db = 24

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, weight_dtype=torch.float8_e5m2)


class TestPerGroup(QTensorContract):
    min_sqnr_db = 30
    cut = 32

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, granularity=PerGroup(32))


class SharedByRows(QTensorContract):
    """Rows share a scale with others, so a part cannot be requantized alone."""

    min_sqnr_db = 30

    def test_views_share_storage(self) -> None:
        q = self.make(torch.ones(16, 128))
        assert q[4:8].scale.data_ptr() == q.scale.data_ptr()
        assert q[4:8].codes.data_ptr() == q.codes[4:].data_ptr()


class TestPerTensor(SharedByRows):
    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, granularity=PerTensor())


class TestDynamicPerTensor(SharedByRows):
    min_linear_db = 28
    dynamic = True

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, granularity=PerTensor(), activation="float8_tensor")


class TestDynamicPerRow(QTensorContract):
    min_sqnr_db = 30
    min_linear_db = 28
    dynamic = True

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, activation="float8_row")


class TestStatic(SharedByRows):
    min_linear_db = 24
    dynamic = True

    def make(self, w: Tensor) -> Float8Tensor:
        x_scale = torch.full((1,) * w.dim(), 4 / 448)
        return Float8Tensor.from_float(
            w, granularity=PerTensor(), activation="float8_static", x_scale=x_scale
        )


class Blocks(SharedByRows):
    """What blocks allow: cuts between them, or inside one."""

    cut = 128

    def test_row_views(self) -> None:
        q = self.make(weight(300, 256))
        w = q.dequantize()
        for start, stop in ((0, 128), (128, 300), (128, 256), (256, 300), (5, 77), (130, 131)):
            assert torch.equal(q[start:stop].dequantize(), w[start:stop])
        assert [p.shape[0] for p in q.split(128)] == [128, 128, 44]
        assert same(torch.cat(q.split(128)), q) and same(torch.cat(q.split([128, 172])), q)
        for bad in ((100, 200), (0, 130), (1, 300)):
            with pytest.raises(UnsupportedOpError, match="multiples of 128"):
                q[bad[0] : bad[1]]
        with pytest.raises(UnsupportedOpError, match="index_select"):
            q.index_select(0, torch.tensor([5, 0]))
        with pytest.raises(UnsupportedOpError, match="cannot be joined"):
            torch.cat([q[:128], q[128:192], q[256:]])
        assert q[128:128].shape == (0, 256)

    def test_each_block_has_its_scale(self) -> None:
        q = self.make(weight(300, 200))
        assert q.scale.shape == (3, 2)
        w, blocks = weight(300, 200), (128, 128)
        scale = choose_float8_scale(w, block=blocks)
        codes = quantize_float8(w, scale, block=blocks)
        assert torch.equal(q.scale, scale)
        assert torch.equal(q.dequantize(), dequantize_float8(codes, scale, block=blocks))


class TestPerBlock(Blocks):
    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(w, granularity=PerBlock((128, 128)))


class TestDynamicPerBlock(Blocks):
    min_linear_db = 28
    dynamic = True

    def make(self, w: Tensor) -> Float8Tensor:
        return Float8Tensor.from_float(
            w, granularity=PerBlock((128, 128)), activation="float8_block"
        )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_is_its_own_image(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()][None]
    q = Float8Tensor.from_float(codes.float() * 0.5, weight_dtype=dtype)
    assert q.scale.item() == 0.5
    assert torch.equal(q.codes.view(torch.uint8), codes.view(torch.uint8))


@pytest.mark.parametrize("shape", [(700, 900), (3, 40, 50), (48, 64, 1, 1), (1, 8), (300, 1)])
@pytest.mark.parametrize(
    "granularity", [PerRow(), PerTensor(), PerGroup(32), PerBlock((128, 128)), PerBlock((3, 8))]
)
def test_conversion_in_pieces_is_conversion_at_once(shape: tuple, granularity: object) -> None:
    """Large weights are converted a few rows at a time: the bits are those of the definition."""
    w = weight(*shape)
    q = Float8Tensor.from_float(w, granularity=granularity)  # type: ignore[arg-type]
    plain = w.reshape(shape[:2]) if len(shape) == 4 else w
    n = plain.dim()
    block = {
        PerRow: (*(1,) * (n - 1), plain.shape[-1]),
        PerTensor: tuple(plain.shape),
        PerGroup: (*(1,) * (n - 1), 32),
        PerBlock: (*(1,) * (n - 2), *getattr(granularity, "block_size", ())),
    }[type(granularity)]
    scale = choose_float8_scale(plain, block=block)
    codes = quantize_float8(plain, scale, block=block)
    assert torch.equal(q.scale.flatten(), scale.flatten())
    assert torch.equal(q.codes.view(torch.uint8).flatten(), codes.view(torch.uint8).flatten())
    expected = dequantize_float8(codes, scale, block=block).reshape(shape)
    assert torch.equal(q.dequantize(), expected)


def test_static_scales_do_not_depend_on_how_the_weight_is_cut() -> None:
    """The parts of a product over input features add up to the whole; nothing is requantized."""
    x, x_scale = weight(5, 128, seed=1), torch.full((1, 1), 4 / 448)
    q = Float8Tensor.from_float(
        weight(32, 128), granularity=PerTensor(), activation="float8_static", x_scale=x_scale
    )
    whole = F.linear(x, q)
    parts = F.linear(x[:, :50], q[:, :50]) + F.linear(x[:, 50:], q[:, 50:])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-5)
    rows = torch.cat([F.linear(x, q[:13]), F.linear(x, q[13:])], 1)
    assert torch.equal(rows, whole)


def test_an_empty_part_is_a_tensor() -> None:
    for granularity in (PerRow(), PerTensor(), PerBlock((128, 128))):
        q = Float8Tensor.from_float(weight(256, 128), granularity=granularity)[128:128]
        assert q.dequantize().shape == (0, 128)
        assert F.linear(weight(3, 128), q).shape == (3, 0)


def test_a_flattened_weight_has_no_values() -> None:
    """FSDP2 keeps one as the handle of a shard."""
    q = Float8Tensor.from_float(weight(16, 100), granularity=PerBlock((16, 32)))
    assert q.view(-1).codes.data_ptr() == q.codes.data_ptr()
    with pytest.raises(UnsupportedOpError, match="in its own shape"):
        q.view(-1).dequantize()
