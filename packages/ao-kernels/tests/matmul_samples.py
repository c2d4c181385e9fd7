"""Quantized operands for the tests of the matmul ops: every kind of scale, and pairs of kinds."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ao_kernels.ops import quantize_block_both, quantize_mx, quantize_rowwise_both
from ao_kernels.ops import quantize_tensorwise_both as tensorwise

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SHAPES = [(16, 16, 16), (48, 80, 32), (144, 272, 400), (16, 320, 1040)]
LARGE = [(512, 1024, 2048), (528, 272, 4096), (4096, 512, 640)]
PAIRS = [
    ("tensor", "tensor"),
    ("row", "row"),
    ("tensor", "row"),
    ("row", "tensor"),
    ("1x128", "128x128"),
    ("128x128", "1x128"),
    ("1x128", "1x128"),
    ("1x128", "row"),
    ("tensor", "128x128"),
    ("mx", "mx"),
]
DTYPES = [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2)]


def operand(x: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes and scale of x by rows."""
    if kind == "tensor":
        codes, _, scale = tensorwise(x, dtype, None, False, "rows")
        return codes, scale
    if kind == "row":
        return quantize_rowwise_both(x, dtype, False, "rows")[:2]
    if kind == "mx":
        return quantize_mx(x, dtype, "rows")[:2]
    return quantize_block_both(x, dtype, int(kind.split("x")[0]), 128, False, "rows")[:2]


def exact(codes: Tensor, scale: Tensor, kind: str) -> Tensor:
    """codes * scale in float64, written apart from the ops: each element finds its scale."""
    R, K = codes.shape
    rows, columns = torch.arange(R)[:, None], torch.arange(K)[None, :]
    scale = scale.cpu().float() if kind == "mx" else scale.cpu()
    if kind == "tensor":
        spread = scale.reshape(1, 1).expand(R, K)
    elif kind == "row":
        spread = scale.reshape(-1, 1).expand(R, K)
    elif kind == "mx":
        spread = scale[rows, columns // 32]
    else:
        spread = scale[rows // int(kind.split("x")[0]), columns // 128]
    return codes.cpu().double() * spread.double()


def products(
    shapes: Sequence[tuple[int, int, int]] = tuple(SHAPES),
) -> Iterator[tuple[str, tuple[Tensor, ...], Tensor, Tensor]]:
    """Name, arguments (a, a_scale, b, b_scale), the product in float64, and the sum of magnitudes
    of each of its elements."""
    generator = torch.Generator().manual_seed(3)
    for M, N, K in shapes:
        x = torch.randn(M, K, generator=generator) * torch.rand(M, 1, generator=generator)
        w = torch.randn(N, K, generator=generator) * torch.rand(1, K, generator=generator)
        for kinds in PAIRS:
            for dtypes in DTYPES if kinds in PAIRS[::4] else DTYPES[:1]:
                a, a_scale = operand(x, kinds[0], dtypes[0])
                b, b_scale = operand(w, kinds[1], dtypes[1])
                left, right = exact(a, a_scale, kinds[0]), exact(b, b_scale, kinds[1])
                name = f"{M}x{N}x{K} {kinds} {dtypes}"
                yield name, (a, a_scale, b, b_scale), left @ right.T, left.abs() @ right.abs().T
