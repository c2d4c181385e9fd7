"""Which tile a program of a Triton linear computes."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="needs triton: pip install ao-kernels[triton]")

import triton.language as tl  # noqa: E402

from ao_kernels.triton import tiles  # noqa: E402


@triton.jit
def _places(out, tiles_m, tiles_n, GROUP: tl.constexpr):
    tile = tl.program_id(0)
    m, n = tiles.place(tile, tiles_m, tiles_n, GROUP)
    tl.store(out + tile * 2, m)
    tl.store(out + tile * 2 + 1, n)


@pytest.mark.interpreted
@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (16, 7), (19, 4), (8, 8)])
@pytest.mark.parametrize("group", [0, 1, 8])
def test_every_tile_has_one_program(sizes: tuple[int, int], group: int) -> None:
    tiles_m, tiles_n = sizes
    out = torch.empty(tiles_m * tiles_n, 2, dtype=torch.int64)
    _places[(tiles_m * tiles_n,)](out, tiles_m, tiles_n, group)
    found = [tuple(each) for each in out.tolist()]
    assert sorted(found) == [(m, n) for m in range(tiles_m) for n in range(tiles_n)]
    if group == 0:
        assert [n for _, n in found] == sorted(n for _, n in found)
    else:
        assert [m // group for m, _ in found] == sorted(m // group for m, _ in found)
