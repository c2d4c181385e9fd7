"""The rows of formats.py agree with each other and with what quantizers produce."""

import pytest
import torch

from ao_core.formats import FORMATS, get_format
from ao_core.numerics import choose_int8_scale, choose_intx_qparams, quantize_int8, quantize_intx
from ao_core.packing import pack


def test_names() -> None:
    assert list(FORMATS) == [row.name for row in FORMATS.values()]
    integers = ["int8", *(f"int{bits}" for bits in range(1, 8)), "intx8"]
    assert list(FORMATS) == [*integers, "float8_e4m3", "float8_e5m2"]
    assert get_format("int4") is FORMATS["int4"]
    with pytest.raises(ValueError, match="unknown format 'int9'; known: int8, int1"):
        get_format("int9")


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_consistent(name: str) -> None:
    row = FORMATS[name]
    if row.packed:
        assert row.storage == torch.uint8
        assert (row.low, row.high, row.midpoint) == (0, 2**row.bits - 1, 2 ** (row.bits - 1))
    else:
        assert row.storage.itemsize * 8 == row.bits
        assert row.low == -row.high and row.midpoint == 0
    if row.storage.is_floating_point:
        assert row.high == torch.finfo(row.storage).max


def test_quantizers_stay_inside_their_row() -> None:
    w = torch.randn(27, 37, generator=torch.Generator().manual_seed(0))
    row = get_format("int8")
    scale = choose_int8_scale(w, group_size=37)
    codes = quantize_int8(w, scale, group_size=37)
    assert codes.dtype == row.storage and scale.dtype == row.scale
    assert codes.min() >= row.low and codes.max() == row.high
    for bits in range(1, 9):
        row = get_format("intx8" if bits == 8 else f"int{bits}")
        for mapping in ("symmetric", "asymmetric"):
            scale, zero = choose_intx_qparams(w, bits=bits, group_size=8, mapping=mapping)
            codes = quantize_intx(w, scale, zero, bits=bits, group_size=8)
            assert scale.dtype == row.scale and pack(codes, bits).dtype == row.storage
            assert int(codes.min()) == row.low and row.high - 1 <= int(codes.max()) <= row.high
            if zero is None:
                nothing = quantize_intx(w * 0, scale, zero, bits=bits, group_size=8)
                assert (nothing == row.midpoint).all()
