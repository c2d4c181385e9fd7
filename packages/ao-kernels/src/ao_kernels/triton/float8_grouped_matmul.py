"""Products of float8 tokens with the weights of their experts, by ``grouped_library`` or by the
kernel of ``grouped_product``.

M tokens sorted by expert, E experts, N rows of an expert's b, K features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels.ops.float8_grouped_matmul import float8_grouped_matmul
from ao_kernels.triton import grouped_codes, grouped_library, grouped_product, tiles

_PRODUCTS = grouped_codes.Products()


def _library_supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return grouped_codes.library_refusal(a, b, b.shape[0], out_dtype)


@float8_grouped_matmul.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_PRODUCTS.direct),  # for the kernel below, too
)
def _run_library(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    given = (a, a_scale, b, b_scale, offsets)
    ready = grouped_codes.contiguous(given)
    weight = _weight(ready[2], ready[3])
    product = grouped_library.product(len(a), weight, a.device, fast_accum=fast_accum)
    return _start(product, given, ready, out_dtype, fast_accum)


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return None


@float8_grouped_matmul.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return float8_grouped_matmul.reference(
            a, a_scale, b, b_scale, offsets, out_dtype, fast_accum
        )
    given = (a, a_scale, b, b_scale, offsets)
    ready = grouped_codes.contiguous(given)
    weight, dtype = _weight(ready[2], ready[3]), out_dtype or torch.bfloat16
    product = grouped_product.product(ready[0], "row", weight, ready[4], None, out_dtype=dtype)
    return _start(product, given, ready, out_dtype, fast_accum)


def _weight(b: Tensor, b_scale: Tensor) -> grouped_product.Weight:
    return grouped_product.Weight(b, b_scale.view(*b.shape[:2], 1), None, 0, 1, b.shape[2])


def _start(
    product: grouped_product.Product | grouped_library.LibraryProduct,
    given: grouped_codes.Operands,
    ready: grouped_codes.Operands,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, offsets: Tensor) -> Tensor:
        return product(a, a_scale, _weight(b, b_scale), offsets, None)

    return _PRODUCTS.start(multiply, given, ready, out_dtype, fast_accum)
