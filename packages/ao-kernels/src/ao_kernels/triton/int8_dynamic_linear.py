"""int8 linear with int8 activations in Triton.

M tokens, N output features, K input features. One kernel quantizes the tokens, one multiplies codes
with codes in int32, which is exact, and scales at the end:

    y[m, n] = (sum_k code[n, k] * x_code[m, k]) * scale[n] * x_scale[m] + bias[n]

in this order: the scale of a weight is an ordinary number, that of a token may be the smallest or
the largest there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.cpu.weight import dense
from ao_kernels.ops.int8_dynamic_linear import int8_dynamic_linear
from ao_kernels.triton import launch, partials, tiles
from ao_kernels.triton.quantize_rowwise import row_launch, static_launch

_GROUP = 0  # rows of tiles that are worked off together; 0: all
_MOST_FEATURES = (2**31 - 1) // (127 * 128)  # an int32 sum of more could overflow


@triton.jit(do_not_specialize=["M", "steps"])
def _int8_linear(
    x_codes,
    x_scale,
    codes,
    scale,
    bias,
    y,
    M,
    N,
    K,
    padded,
    n_steps,
    steps,
    codes_stride,
    scale_stride,
    HAS_BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tile_m, tile_n = tiles.place(tile, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_m = tl.minimum(m, M - 1).to(tl.int64)  # rows outside repeat the last one and are not stored
    row_n = tl.minimum(n, N - 1).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x_rows = x_codes + row_m[:, None] * padded + k[None, :]
    codes_rows = codes + row_n[:, None] * codes_stride + k[None, :]

    acc_NM = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
    for step in range(split * steps, min(split * steps + steps, n_steps)):
        start = step * BLOCK_K
        x_MK = tl.load(x_rows + start)
        if EVEN:
            w_NK = tl.load(codes_rows + start)
        else:
            w_NK = tl.load(codes_rows + start, mask=(start + k < K)[None, :], other=0)
        acc_NM = tl.dot(w_NK, tl.trans(x_MK), acc_NM, out_dtype=tl.int32)

    if SPLIT:
        partials.store_part(acc_NM, y, split, m, n, M, N)
    else:
        weight = tl.load(scale + row_n * scale_stride).to(tl.float32)
        total = acc_NM.to(tl.float32) * weight[:, None]
        total *= tl.load(x_scale + row_m)[None, :]
        partials.store_tile(total, bias, y, m, n, M, N, HAS_BIAS)


def _supports(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> str | None:
    return tiles.refusal(x, bias, codes, scale)


def _tile(M: int) -> tiles.Tile:
    """The fastest of the tiles tried: H200, 4096 x 4096, in a CUDA graph, us.

    M = 1: 11.6 (slowest 30.6). M = 64: 12.2 (4 programs: 15.7). M = 4096: 146 (128 x 128: 178).
    """
    if M <= 16:
        return tiles.Tile(16, 64, 256, 4, 3, 4)
    if M <= 64:
        return tiles.Tile(32 if M <= 32 else 64, 64, 128, 4, 4, 2)
    return tiles.Tile(64, 128, 128, 4, 4, 1)


class Product(NamedTuple):
    """``parts``: what ``finish`` adds up to y; they are y itself where there is no ``finish``.
    ``padded``: bytes of a row of x_codes."""

    y: launch.Room
    linear: launch.Launch
    parts: launch.Room
    finish: launch.Launch | None
    padded: int

    def __call__(
        self, x_codes: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        y = self.y.like(x_codes)
        if self.finish is None:
            self.linear(x_codes, x_scale, codes, scale, bias, y)
            return y
        parts = self.parts.like(x_codes)
        self.linear(x_codes, x_scale, codes, scale, bias, parts)
        self.finish(parts, x_scale, scale, bias, y)
        return y


class Plan(NamedTuple):
    """``quantize`` makes the codes of the tokens, ``product`` multiplies."""

    x_codes: launch.Room
    x_scale: launch.Room
    quantize: launch.Launch
    product: Product


_PLANS: launch.Plans[Plan] = launch.Plans()


def _key(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    return launch.facts(x), launch.facts(codes), launch.facts(scale), launch.facts(bias)


def plan_of(
    shape: torch.Size,
    x_MK: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    static: bool = False,
) -> Plan:
    """For :func:`launch_plan` with tensors like these, made ready.

    ``static``: and with a given scale of the tokens.
    """
    M = x_MK.shape[0]
    multiply = product((*shape[:-1], codes.shape[0]), M, codes, scale, bias, x_MK.dtype)
    quantize = (static_launch if static else row_launch)(x_MK, torch.int8, padded=multiply.padded)
    x_codes = launch.Room.of((M, multiply.padded), torch.int8)
    x_scale = launch.Room.of((M,), torch.float32)
    return Plan(x_codes, x_scale, quantize, multiply)


def product(
    shape: Sequence[int],
    M: int,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Product:
    """The product of M rows of codes, and their scales (M,), with codes (N, K) whose rows lie in
    one piece and scale (N or 1, 1), for results of ``shape``."""
    (N, K), device = codes.shape, codes.device
    tile = _tile(M)
    n_steps = triton.cdiv(K, tile.block_k)
    padded = n_steps * tile.block_k
    most_steps = _MOST_FEATURES // tile.block_k
    splits, steps = tile.split(M, N, n_steps, device, most=most_steps)
    stride = tiles.row_stride(scale)
    linear = launch.Launch(
        _int8_linear,
        tile.grid(M, N, splits),
        (M, N, K, padded, n_steps, steps, codes.stride(0), stride),
        {
            "HAS_BIAS": bias is not None,
            "SPLIT": splits > 1,
            "EVEN": K % tile.block_k == 0,
            "GROUP": _GROUP,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        device,
    )
    y = launch.Room.of(shape, out_dtype)
    if splits == 1:
        return Product(y, linear, y, None, padded)
    sums = torch.int32 if n_steps <= most_steps else torch.float32
    parts = launch.Room.of((splits, M, N), sums)
    finish = partials.finish_launch(
        (splits, M, N), device, bias=bias is not None, scaled=True, weight_stride=stride
    )
    return Product(y, linear, parts, finish, padded)


def _direct(_: int, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    plan = _PLANS.get(_key(x, codes, scale, bias))
    return NotImplemented if plan is None else launch_plan(plan, x, codes, scale, bias)


@int8_dynamic_linear.kernel(
    "triton", device=tiles.DEVICES, supports=_supports, direct=tiles.eager(_direct)
)
def _run(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    if x.numel() == 0 or codes.numel() == 0:
        return x.new_empty((*x.shape[:-1], codes.shape[0]))
    given, ready = (
        (x, codes, scale, bias),
        (tiles.rows(x), codes.contiguous(), dense(scale), dense(bias)),
    )
    key = (x.shape, _key(*ready))
    plan = _PLANS.get(key) or _PLANS.keep(key, plan_of(x.shape, *ready))
    if launch.same_places(given, ready):
        _PLANS.keep(_key(*given), plan)
    return launch_plan(plan, *ready)


def launch_plan(
    plan: Plan,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    given: Tensor | None = None,
) -> Tensor:
    x_codes_MP, x_scale_M = plan.x_codes.like(x), plan.x_scale.like(x)
    if given is None:
        plan.quantize(x, x_codes_MP, x_scale_M)
    else:
        plan.quantize(x, x_codes_MP, x_scale_M, given)
    return plan.product(x_codes_MP, x_scale_M, codes, scale, bias)
