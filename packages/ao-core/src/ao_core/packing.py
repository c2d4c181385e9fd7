"""Sub-byte codes and their bytes.

A row of K codes of b bits each is a little-endian bit stream: code k occupies the bits
[k*b, (k+1)*b) of the stream, and bit i of the stream is bit (i % 8) of byte i // 8.

    b = 4:  byte 0 = k1 k1 k1 k1 k0 k0 k0 k0        (most significant bit on the left)
    b = 3:  byte 0 = k2 k2 k1 k1 k1 k0 k0 k0
            byte 1 = k5 k4 k4 k4 k3 k3 k3 k2
            byte 2 = k7 k7 k7 k6 k6 k6 k5 k5

Eight codes of b bits fill b bytes exactly, so a row is padded to a multiple of eight codes and
takes `packed_bytes(K, b) = ceil(K / 8) * b` bytes. The pad codes carry no information.
"""

import torch
from torch import Tensor

__all__ = ["pack", "packed_bytes", "unpack"]

CODES_PER_UNIT = 8  # eight codes of b bits are b whole bytes


def packed_bytes(length: int, bits: int) -> int:
    """Bytes that a row of `length` codes of `bits` bits takes."""
    _check_bits(bits)
    return -(-length // CODES_PER_UNIT) * bits


def pack(codes: Tensor, bits: int, *, pad: int = 0) -> Tensor:
    """Pack codes along the last dimension.

    codes: (..., K) uint8, each in [0, 2**bits - 1]; `pad` is the code that fills the last unit.
    Returns (..., ceil(K/8)*bits) uint8. Codes out of range raise ValueError.
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise TypeError(f"pack: codes must be uint8, got {codes.dtype}")
    if not 0 <= pad < 2**bits:
        raise ValueError(f"pack: the pad code is {pad}, {bits} bits hold 0 to {2**bits - 1}")
    if bits == 8:
        return _padded(codes, pad).contiguous()
    if codes.device.type != "meta" and codes.numel() and int(codes.amax()) >> bits:
        raise ValueError(
            f"pack: a code is {int(codes.amax())}, {bits} bits hold 0 to {2**bits - 1}"
        )
    units = _padded(codes, pad).unflatten(-1, (-1, CODES_PER_UNIT))
    packed = units.new_zeros(*units.shape[:-1], bits)
    for k in range(CODES_PER_UNIT):
        code, (byte, shift) = units[..., k], divmod(k * bits, 8)
        packed[..., byte] |= code << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= code >> (8 - shift)
    return packed.flatten(-2)


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """The inverse of `pack`: (..., ceil(length/8)*bits) uint8 -> (..., length) uint8 codes."""
    _check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_bytes(length, bits):
        raise ValueError(
            f"unpack: {length} codes of {bits} bits take {packed_bytes(length, bits)} uint8 a row, "
            f"got {packed.shape[-1]} of {packed.dtype}"
        )
    if bits == 8:
        return packed[..., :length]
    if bits == 4:  # the common case in two operations
        return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :length]
    units = packed.unflatten(-1, (-1, bits))
    mask, columns = 2**bits - 1, []
    for k in range(CODES_PER_UNIT):
        byte, shift = divmod(k * bits, 8)
        code = units[..., byte] >> shift
        if shift + bits > 8:
            code = code | (units[..., byte + 1] << (8 - shift))
        columns.append(code & mask)
    return torch.stack(columns, dim=-1).flatten(-2)[..., :length]


def _padded(codes: Tensor, pad: int) -> Tensor:
    extra = -codes.shape[-1] % CODES_PER_UNIT
    return torch.nn.functional.pad(codes, (0, extra), value=pad) if extra else codes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"codes have 1 to 8 bits, got {bits}")
