"""Formats: one row each, the single source of truth about how codes of a format look.

Nothing else may infer a format from a tensor's dtype. The byte layouts are specified in
docs/formats.md.
"""

from dataclasses import dataclass

import torch

__all__ = ["FORMATS", "Format", "get_format"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a code is, and what is stored with it.

    name       as in reports and checkpoints
    bits       of one code
    storage    dtype of the tensor that holds the codes
    packed     codes are a bit stream (ao_core.packing); otherwise a storage element holds one code
    low, high  the range of a code; for packed formats codes are unsigned and `midpoint` stands for
               zero
    midpoint   the code that means 0.0 when no zero point is stored
    scale      dtype of the scales
    """

    name: str
    bits: int
    storage: torch.dtype
    packed: bool
    low: float
    high: float
    midpoint: int
    scale: torch.dtype


def _intx(bits: int) -> Format:
    return Format(
        name=f"int{bits}" if bits < 8 else "intx8",
        bits=bits,
        storage=torch.uint8,
        packed=True,
        low=0,
        high=2**bits - 1,
        midpoint=2 ** (bits - 1),
        scale=torch.bfloat16,
    )


def _float8(name: str, dtype: torch.dtype) -> Format:
    high = torch.finfo(dtype).max
    return Format(
        name=name,
        bits=8,
        storage=dtype,
        packed=False,
        low=-high,
        high=high,
        midpoint=0,
        scale=torch.float32,
    )


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="int8",
            bits=8,
            storage=torch.int8,
            packed=False,
            low=-127,  # -128 is never produced, so negating a code is exact
            high=127,
            midpoint=0,
            scale=torch.float32,
        ),
        *(_intx(bits) for bits in range(1, 9)),
        _float8("float8_e4m3", torch.float8_e4m3fn),
        _float8("float8_e5m2", torch.float8_e5m2),
    )
}


def get_format(name: str) -> Format:
    """The row of a format; ValueError lists the known ones."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]
