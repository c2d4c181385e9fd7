"""No kernel reads behind the end of a tensor: every argument ends right before a page that may not
be read."""

import ctypes
import mmap
import sys

import pytest
import torch
from linear_samples import isa_variants
from torch import Tensor

from ao_core.packing import pack
from ao_kernels.ops import int8_linear, intx_linear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses mmap and mprotect")

SHAPES = [(1, 3, 5, 8), (1, 17, 100, 40), (3, 33, 321, 64), (20, 35, 250, 128), (40, 19, 129, 8)]


class _Guarded:
    """Copies tensors so that each ends at the start of a protected page."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []  # kept alive: the protection stays on their pages
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __call__(self, tensor: Tensor) -> Tensor:
        page = mmap.PAGESIZE
        n_pages = -(-tensor.nbytes // page)
        memory = mmap.mmap(-1, (n_pages + 1) * page)
        self._maps.append(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if self._libc.mprotect(ctypes.c_void_p(address + n_pages * page), page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        start = n_pages * page - tensor.nbytes
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        return flat.view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("M", "N", "K", "group_size"), SHAPES)
def test_nothing_behind_the_arguments_is_read(
    M: int, N: int, K: int, group_size: int, dtype: torch.dtype
) -> None:
    guarded, n_groups = _Guarded(), -(-K // group_size)
    x, bias = guarded(torch.randn(M, K).to(dtype)), guarded(torch.randn(N))
    scale = guarded(torch.rand(N, n_groups).bfloat16())
    zero = guarded(torch.rand(N, n_groups).bfloat16())
    packed = [
        guarded(pack(torch.randint(0, 2**bits, (N, K), dtype=torch.uint8), bits))
        for bits in range(1, 9)
    ]
    signed = guarded(torch.randint(-127, 128, (N, K), dtype=torch.int8))
    for _, context in isa_variants():
        with context():
            for bits, codes in enumerate(packed, 1):
                intx_linear(x, codes, scale, zero, bits, group_size, bias)
            int8_linear(x, signed, scale, group_size, bias)
