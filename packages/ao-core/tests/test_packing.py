"""Packing, by enumeration: every code at every place of rows of every length, at every width."""

import pytest
import torch
from torch import Tensor

from ao_core.packing import pack, packed_bytes, unpack

BITS = range(1, 9)
LENGTHS = (*range(18), 24, 63, 64, 65)
every_width = pytest.mark.parametrize("bits", BITS)


def stream(row: list[int], bits: int) -> list[int]:
    """The bytes of a row, from the definition: bit i of the stream is bit i % 8 of byte i // 8."""
    number = sum(code << (k * bits) for k, code in enumerate(row))
    return list(number.to_bytes(-(-len(row) // 8) * bits, "little"))


def rows(bits: int, length: int) -> Tensor:
    """(2**bits, length): each column has every code, and neighbours differ."""
    start, place = torch.arange(2**bits)[:, None], torch.arange(length)[None]
    return ((start + place * 5 + place * place) % 2**bits).to(torch.uint8)


@every_width
@pytest.mark.parametrize("length", LENGTHS)
def test_every_code_at_every_place(bits: int, length: int) -> None:
    codes = rows(bits, length)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.shape == (2**bits, packed_bytes(length, bits))
    assert packed.tolist() == [stream(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(packed, bits, length), codes)


@every_width
def test_one_code_touches_its_own_bits_only(bits: int) -> None:
    for place in range(16):
        codes = torch.zeros(2**bits, 16, dtype=torch.uint8)
        codes[:, place] = torch.arange(2**bits)
        packed = pack(codes, bits)
        numbers = [int.from_bytes(bytes(row), "little") for row in packed.tolist()]
        assert numbers == [code << (place * bits) for code in range(2**bits)]


def test_the_pictures_of_the_docstring() -> None:
    assert pack(torch.tensor([1, 2], dtype=torch.uint8), 4).tolist() == [0x21, 0, 0, 0]
    codes = torch.tensor(
        [0b001, 0b010, 0b011, 0b100, 0b101, 0b110, 0b111, 0b000], dtype=torch.uint8
    )
    assert pack(codes, 3).tolist() == [0b11010001, 0b01011000, 0b00011111]


@every_width
@pytest.mark.parametrize("length", [1, 5, 8, 13])
def test_pad_codes_carry_no_information(bits: int, length: int) -> None:
    codes = rows(bits, length)
    for pad in (0, 2**bits - 1, 2 ** (bits - 1)):
        packed = pack(codes, bits, pad=pad)
        full = torch.nn.functional.pad(codes, (0, -length % 8), value=pad)
        assert torch.equal(packed, pack(full, bits))
        assert torch.equal(unpack(packed, bits, length), codes)


@every_width
def test_any_leading_dimensions_and_strides(bits: int) -> None:
    codes = rows(bits, 13)[:2].repeat(12, 1).reshape(2, 3, 4, 13)
    packed = pack(codes, bits)
    assert packed.shape == (2, 3, 4, 2 * bits)
    assert torch.equal(unpack(packed, bits, 13), codes)
    assert torch.equal(packed.reshape(24, -1), pack(codes.reshape(24, 13), bits))
    assert torch.equal(pack(codes[0, 0, 0], bits), packed[0, 0, 0])
    turned = codes.transpose(0, 2)
    assert torch.equal(pack(turned, bits), packed.transpose(0, 2))
    assert torch.equal(unpack(packed.transpose(0, 2), bits, 13), turned)
    strided = torch.stack((codes, codes), -1)[..., 0]
    assert torch.equal(pack(strided, bits), packed)


@every_width
def test_empty_and_meta(bits: int) -> None:
    for shape in ((0,), (0, 13), (3, 0), (2, 0, 8)):
        codes = torch.zeros(shape, dtype=torch.uint8)
        packed = pack(codes, bits)
        assert packed.shape == (*shape[:-1], packed_bytes(shape[-1], bits))
        assert unpack(packed, bits, shape[-1]).shape == shape
    packed = pack(torch.zeros(4, 13, dtype=torch.uint8, device="meta"), bits)
    assert packed.is_meta and packed.shape == (4, 2 * bits)
    assert unpack(packed, bits, 13).shape == (4, 13)


def test_packed_bytes() -> None:
    assert [packed_bytes(n, 3) for n in (0, 1, 8, 9, 16, 17)] == [0, 3, 3, 6, 6, 9]
    assert [packed_bytes(40, bits) for bits in BITS] == [5 * bits for bits in BITS]


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_out_of_range_are_refused(bits: int) -> None:
    codes = torch.zeros(2, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"the pad code is {2**bits}, {bits} bits hold 0 to"):
        pack(codes, bits, pad=2**bits)
    codes[1, 8] = 2**bits
    with pytest.raises(
        ValueError, match=f"a code is {2**bits}, {bits} bits hold 0 to {2**bits - 1}"
    ):
        pack(codes, bits)


def test_wrong_arguments() -> None:
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    for bits in (0, 9, -1):
        for call in (
            lambda b: pack(codes, b),
            lambda b: unpack(codes, b, 8),
            lambda b: packed_bytes(8, b),
        ):
            with pytest.raises(ValueError, match=f"codes have 1 to 8 bits, got {bits}"):
                call(bits)
    with pytest.raises(TypeError, match=r"codes must be uint8, got torch\.int8"):
        pack(codes.to(torch.int8), 4)
    with pytest.raises(ValueError, match="9 codes of 4 bits take 8 uint8 a row, got 4"):
        unpack(pack(codes, 4), 4, 9)
    with pytest.raises(ValueError, match=r"take 4 uint8 a row, got 4 of torch\.int8"):
        unpack(pack(codes, 4).to(torch.int8), 4, 8)
