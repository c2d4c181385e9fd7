"""Bytes that FSDP2 gathers as float16 come through copies that change NaNs."""

import pytest
import torch

from ao_core.fsdp import DTYPES, _bytes, _halves


@pytest.mark.parametrize("n", [1, 2, 33, 17 * 128])
def test_halves_are_finite_and_give_the_bytes_back(n: int) -> None:
    for bits in (0, 255, 0x7C, 0xFC, None):
        size = DTYPES[torch.float16] * n // 8
        data = torch.randint(256, (size,)) if bits is None else torch.full((size,), bits)
        data = data.to(torch.uint8)
        halves = _halves(data, n)
        assert halves.dtype == torch.float16 and halves.shape == (n,)
        assert halves.isfinite().all()
        copied = halves.float().half()  # what a NaN's bits would not survive on every device
        assert torch.equal(_bytes(torch.stack((halves, copied))), torch.stack((data, data)))
