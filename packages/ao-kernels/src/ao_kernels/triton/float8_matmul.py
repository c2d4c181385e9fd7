"""Products of float8 operands: torch._scaled_mm, the kernel of ``float8_product``, and MX emulated.

M rows of a, N rows of b, K features; G and H blocks of 128 of K and of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops import products
from ao_kernels.ops.float8_matmul import float8_matmul
from ao_kernels.ops.quantize_block_both import BLOCK
from ao_kernels.triton import codes, float8_product, launch, tiles

_BLOCKS = ("1x128", "128x128")
_BIAS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What multiplies a, a_scale, b, b_scale, bias.
_Multiply = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
_PLANS: launch.Plans[_Multiply] = launch.Plans()


def _key(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> tuple[Any, ...]:
    facts = launch.facts
    operands = facts(a), facts(a_scale), facts(b), facts(b_scale)
    return operands, facts(bias), out_dtype, fast_accum


def _direct(
    _: int,
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
) -> Tensor:
    multiply = _PLANS.get(_key(a, a_scale, b, b_scale, bias, out_dtype, fast_accum))
    return NotImplemented if multiply is None else multiply(a, a_scale, b, b_scale, bias)


# ---------------------------------------------------------------- the library


@functools.cache
def _multiplies_blocks(device: torch.device) -> bool:
    """Whether the library's product takes scales of 128 elements: cuBLAS 12.9 or later on sm_90."""
    version = tuple(int(part) for part in (torch.version.cuda or "0").split(".")[:2])
    return torch.cuda.get_device_capability(device) == (9, 0) and version >= (12, 9)


def _library_supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    if a.device.type != "cuda" or not codes.converts_float8(a.device):
        return "the device does not multiply float8"
    (N, K), kinds = b.shape, (products.kind_of(a, a_scale), products.kind_of(b, b_scale))
    if N == 0 or K == 0 or N % 16 or K % 16 or a.shape[0] == 0:
        return (
            f"b is {N} x {K}, with {a.shape[0]} rows of a; torch._scaled_mm takes multiples of 16"
        )
    if a.dtype == b.dtype == torch.float8_e5m2:
        return "torch._scaled_mm does not multiply e5m2 by e5m2"
    if bias is not None and (bias.dtype != (out_dtype or torch.bfloat16) or bias.itemsize > 2):
        return "torch._scaled_mm takes a bias of the result's dtype, bfloat16 or float16"
    if "mx" in kinds:
        return "torch._scaled_mm takes MX operands on sm_100 only, with scales of another order"
    if kinds[0] not in _BLOCKS and kinds[1] not in _BLOCKS:
        return None
    if not _multiplies_blocks(a.device):
        return "torch._scaled_mm takes blocks of 128 on sm_90, with CUDA 12.9 or later"
    if K % BLOCK or a.shape[0] % 4:
        return (
            f"a is {a.shape[0]} x {K}; with blocks, torch._scaled_mm takes multiples of 4 x {BLOCK}"
        )
    if kinds == ("128x128", "128x128"):
        return "torch._scaled_mm does not multiply blocks of 128 x 128 by such"
    if "128x128" in kinds and K % (4 * BLOCK):
        return f"K is {K}; torch._scaled_mm wants the rows of scales in multiples of 16 bytes"
    return None


def _by_rows(scale: Tensor, n_rows: int) -> Tensor:
    """(R, 1), of one scale or those of rows."""
    scale = scale.reshape(-1, 1)
    return (scale if scale.shape[0] == n_rows else scale.expand(n_rows, 1)).contiguous()


def _by_blocks(codes: Tensor, scale: Tensor, kind: str | None) -> Tensor:
    """As the library takes it: (R, G) column by column, or (H, G)."""
    if kind == "128x128":
        return scale.contiguous()
    if kind != "1x128":
        R, K = codes.shape
        scale = scale.reshape(-1, 1).expand(R, -(-K // BLOCK))
    return scale.mT.contiguous().mT


def _library(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> _Multiply:
    """The call for operands like these, whose rows lie in one piece."""
    out_dtype = out_dtype or torch.bfloat16
    kinds = products.kind_of(a, a_scale), products.kind_of(b, b_scale)
    M, N = a.shape[0], b.shape[0]
    multiply = torch._scaled_mm

    def by_tensors(
        a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        return multiply(a, b.t(), a_scale, b_scale, bias, None, out_dtype, fast_accum)

    def by_rows(
        a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        a_scale, b_scale = _by_rows(a_scale, M), _by_rows(b_scale, N)
        return multiply(a, b.t(), a_scale, b_scale.t(), bias, None, out_dtype, fast_accum)

    def by_blocks(
        a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        # The library adds up blocks in float32; asked for less, it raises (torch 2.11).
        a_scale, b_scale = _by_blocks(a, a_scale, kinds[0]), _by_blocks(b, b_scale, kinds[1])
        return multiply(a, b.t(), a_scale, b_scale.t(), bias, None, out_dtype, False)

    if kinds == ("tensor", "tensor"):
        return by_tensors
    return by_blocks if kinds[0] in _BLOCKS or kinds[1] in _BLOCKS else by_rows


@float8_matmul.kernel(
    "triton:library",
    device=tiles.DEVICES,
    supports=_library_supports,
    direct=tiles.eager(_direct),  # for the kernels below, too: the plans know which one it is
)
def _run_library(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    given, ready = (a, b), (_aligned(a), _aligned(b))
    multiply = _library(a, a_scale, b, b_scale, out_dtype, fast_accum)
    if launch.same_places(given, ready):
        _PLANS.keep(_key(a, a_scale, b, b_scale, bias, out_dtype, fast_accum), multiply)
    return multiply(ready[0], a_scale, ready[1], b_scale, bias)


def _aligned(codes: Tensor) -> Tensor:
    """Rows in one piece, each at a multiple of 16 bytes."""
    fits = codes.stride(1) == 1 and codes.stride(0) % 16 == 0 and codes.data_ptr() % 16 == 0
    return codes if fits else codes.clone(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- our kernel


def _supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    if a_scale.dtype == products.E8M0:
        return "scales are those of MX"
    if bias is not None and bias.dtype not in _BIAS_DTYPES:
        return f"bias has dtype {bias.dtype}; the Triton kernels take float32, bfloat16 and float16"
    return None


@float8_matmul.kernel("triton", device=tiles.DEVICES, supports=_supports)
def _run(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    if a.numel() == 0 or b.numel() == 0:
        return float8_matmul.reference(a, a_scale, b, b_scale, bias, out_dtype, fast_accum)
    kinds = products.kind_of(a, a_scale), products.kind_of(b, b_scale)
    blocks = kinds[0] in _BLOCKS or kinds[1] in _BLOCKS
    a_kind = "block" if blocks else str(kinds[0])
    block_n = BLOCK if kinds[1] == "128x128" else b.shape[0] if kinds[1] == "tensor" else 1
    out_dtype = out_dtype or torch.bfloat16

    def scales(a_scale: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
        """(M, G), (M, 1) or one; and (N, G), (H, G), (N, 1) or (1, 1)."""
        if not blocks:
            return a_scale.contiguous(), b_scale.reshape(-1, 1).contiguous()
        G = -(-a.shape[1] // BLOCK)
        if kinds[0] == "128x128":
            a_scale = a_scale.repeat_interleave(BLOCK, 0)[: a.shape[0]]
        elif kinds[0] != "1x128":
            a_scale = a_scale.reshape(-1, 1).expand(a.shape[0], G)
        if kinds[1] not in _BLOCKS:
            b_scale = b_scale.reshape(-1, 1)
            b_scale = b_scale.expand(b_scale.shape[0], G)
        return a_scale.contiguous(), b_scale.contiguous()

    given = (a, b, bias)
    ready = (a.contiguous(), b.contiguous(), dense(bias))
    ready_scales = scales(a_scale, b_scale)
    product = float8_product.product(
        a.shape[:1],
        ready[0],
        a_kind,
        ready[1],
        ready_scales[1],
        block_n,
        BLOCK,
        ready[2],
        out_dtype=out_dtype,
    )

    def multiply(
        a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        a_scale, b_scale = scales(a_scale, b_scale)
        return product(a, a_scale, b, b_scale, bias)

    if launch.same_places(given, ready):
        key = _key(a, a_scale, b, b_scale, bias, out_dtype, fast_accum)
        _PLANS.keep(key, multiply)
    return product(ready[0], ready_scales[0], ready[1], ready_scales[1], ready[2])


# ---------------------------------------------------------------- MX, emulated


def _mx_supports(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> str | None:
    return None if a_scale.dtype == products.E8M0 else "scales are not those of MX"


@float8_matmul.kernel("triton:mx", device=tiles.DEVICES, supports=_mx_supports)
def _run_mx(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    fast_accum: bool,
) -> Tensor:
    """bfloat16 holds codes times powers of two, but for those below 2**-133; sums are float32."""
    if a.numel() == 0 or b.numel() == 0 or a.device.type != "cuda":
        return float8_matmul.reference(a, a_scale, b, b_scale, bias, out_dtype, fast_accum)
    left = products.dequantize(a, a_scale, torch.bfloat16)
    right = products.dequantize(b, b_scale, torch.bfloat16).t()
    if bias is None and out_dtype in (None, torch.bfloat16):
        return torch.mm(left, right)
    return products.finish(torch.mm(left, right, out_dtype=torch.float32), bias, out_dtype)
