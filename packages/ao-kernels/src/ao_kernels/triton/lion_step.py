"""A step of Lion for a list of parameters in Triton; see adam_step.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.lion_step import lion_step
from ao_kernels.triton import codes, moments, steps, tiles


@triton.jit
def _lion(
    table,
    scalars,
    places,
    P: tl.constexpr,
    G: tl.constexpr,
    n: tl.constexpr,
    R: tl.constexpr,
    TILES: tl.constexpr,
    RAGGED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    BITS: tl.constexpr,
    SIGNED_MAP: tl.constexpr,
    MAP: tl.constexpr,
    NATIVE: tl.constexpr,
    FAST: tl.constexpr,
):
    pid = tl.program_id(0)
    which = tl.load(places + 2 * pid)
    first = tl.load(places + 2 * pid + 1).to(tl.int64) * (TILES * R)  # of the rows
    row = table + which * steps.COLUMNS
    numel = tl.load(row)
    p_at = steps.pointer(row + 1, P, RAGGED) + first * n
    g_at = steps.pointer(row + 2, G, RAGGED) + first * n
    M: tl.constexpr = tl.float32 if BITS == 32 else tl.uint8
    width: tl.constexpr = n // 2 if BITS == 4 else n
    m_at = steps.pointer(row + 3, M, RAGGED) + first * width
    m_scale = steps.pointer(row + 4, tl.float32, True) + first
    given = scalars + which * 8
    decay = tl.load(given).to(tl.float32)
    beta1 = tl.load(given + 1).to(tl.float32)
    rest1 = tl.load(given + 2).to(tl.float32)
    beta2 = tl.load(given + 3).to(tl.float32)
    rest2 = tl.load(given + 4).to(tl.float32)
    lr = tl.load(given + 5).to(tl.float32)
    left = numel - first * n
    for tile in range(TILES):
        rows = tile * R + tl.arange(0, R)
        mask_R = rows * n < left
        at = rows[:, None] * n + tl.arange(0, n)[None, :]
        if RAGGED:
            mask = at < left
        else:
            mask = mask_R[:, None]
        p = codes.widened(tl.load(p_at + at, mask=mask, other=0.0)) * decay
        g = codes.widened(tl.load(g_at + at, mask=mask, other=0.0))
        if BITS == 32:
            m = tl.load(m_at + at, mask=mask, other=0.0)
        else:
            m = moments.load(m_at, m_scale, rows, mask_R, n, SIGNED_MAP, True, BITS, NATIVE)
        if MAXIMIZE:
            g = -g
        mixed = m * beta1 + g * rest1
        step = tl.where(mixed > 0, lr, tl.where(mixed < 0, -lr, mixed * 0.0))  # NaN stays NaN
        p = p - step
        m = m * beta2 + g * rest2
        if RAGGED:
            m = tl.where(mask, m, 0.0)
        if STOCHASTIC:
            index = at + first * n + tl.load(row + 9)
            stored = steps.stochastic(p, index, tl.load(row + 10))
        else:
            stored = steps.rounded(p, P, FAST)
        tl.store(p_at + at, stored, mask=mask)
        if BITS == 32:
            tl.store(m_at + at, m, mask=mask)
        else:
            moments.save(m_at, m_scale, rows, mask_R, m, n, SIGNED_MAP, True, BITS, NATIVE)


_LISTS = 4


def _supports(params: Sequence[Tensor], grads: Sequence[Tensor], *others: Any) -> str | None:
    return steps.refusal(params, grads, state_bits=others[3], block_size=others[4])


def _constants(*args: Any) -> dict[str, Any]:
    """Of the kernel, from the arguments of the op."""
    return {"MAXIMIZE": args[7]}


@lion_step.kernel(
    "triton",
    device=tiles.DEVICES,
    supports=_supports,
    direct=steps.direct_entry(_lion, "lion_step", _LISTS, _constants),
)
def _run(*args: Any) -> None:
    steps.run(_lion, _LISTS, _constants, args)
