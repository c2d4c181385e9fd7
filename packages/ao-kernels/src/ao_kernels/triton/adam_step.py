"""A step of Adam for a list of parameters in Triton: one launch, one pass over memory.

A program takes TILES tiles of (R, n) elements of one parameter, R blocks of n elements. Which
parameter, and which part of it, a table says that stays on the device; addresses and scalars go
there with every step, from pinned memory, without waiting. Where a parameter ends within a block,
or begins at an address that is no multiple of 16, its tiles are launched apart, element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.adam_step import adam_step
from ao_kernels.triton import codes, moments, steps, tiles


@triton.jit
def _adam(
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
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    AMSGRAD: tl.constexpr,
    DITHERED: tl.constexpr,
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
    v_at = steps.pointer(row + 5, M, RAGGED) + first * width
    m_scale = steps.pointer(row + 4, tl.float32, True) + first
    v_scale = steps.pointer(row + 6, tl.float32, True) + first
    if AMSGRAD:
        u_at = steps.pointer(row + 7, M, RAGGED) + first * width
        u_scale = steps.pointer(row + 8, tl.float32, True) + first
    given = scalars + which * 8
    decay = tl.load(given).to(tl.float32)
    beta1 = tl.load(given + 1).to(tl.float32)
    rest1 = tl.load(given + 2).to(tl.float32)
    beta2 = tl.load(given + 3).to(tl.float32)
    rest2 = tl.load(given + 4).to(tl.float32)
    correction = tl.load(given + 5).to(tl.float32)
    eps = tl.load(given + 6).to(tl.float32)
    size = tl.load(given + 7).to(tl.float32)
    left = numel - first * n
    for tile in range(TILES):
        rows = tile * R + tl.arange(0, R)
        mask_R = rows * n < left
        at = rows[:, None] * n + tl.arange(0, n)[None, :]
        if RAGGED:
            mask = at < left
        else:
            mask = mask_R[:, None]
        p = codes.widened(tl.load(p_at + at, mask=mask, other=0.0))
        g = codes.widened(tl.load(g_at + at, mask=mask, other=0.0))
        if BITS == 32:
            m = tl.load(m_at + at, mask=mask, other=0.0)
            v = tl.load(v_at + at, mask=mask, other=0.0)
        else:
            m = moments.load(m_at, m_scale, rows, mask_R, n, SIGNED_MAP, True, BITS, NATIVE)
            v = moments.load(v_at, v_scale, rows, mask_R, n, MAP, False, BITS, NATIVE)
        if MAXIMIZE:
            g = -g
        if DECOUPLED:
            p = p * decay
        else:
            g = g + p * decay
        m = m * beta1 + g * rest1
        v = v * beta2 + g * g * rest2
        if RAGGED:  # what fills up the last block counts as zero
            m = tl.where(mask, m, 0.0)
            v = tl.where(mask, v, 0.0)
        u = v
        if AMSGRAD:
            if BITS == 32:
                u = tl.load(u_at + at, mask=mask, other=0.0)
            else:
                u = moments.load(u_at, u_scale, rows, mask_R, n, MAP, False, BITS, NATIVE)
            u = tl.maximum(u, v, propagate_nan=tl.PropagateNan.ALL)
            if RAGGED:
                u = tl.where(mask, u, 0.0)
        p = steps.less(p, m, steps.root(u, FAST) * correction + eps, size, FAST)
        if STOCHASTIC:
            index = at + first * n + tl.load(row + 9)
            stored = steps.stochastic(p, index, tl.load(row + 10))
        else:
            stored = steps.rounded(p, P, FAST)
        tl.store(p_at + at, stored, mask=mask)
        if BITS == 32:
            tl.store(m_at + at, m, mask=mask)
            tl.store(v_at + at, v, mask=mask)
            if AMSGRAD:
                tl.store(u_at + at, u, mask=mask)
        else:
            if DITHERED:
                start = tl.load(row + 11).to(tl.uint32) + moments.dither_words(first * n)
                words = start + moments.dither_words(at)
                moments.save_dithered(m_at, m_scale, rows, mask_R, m, words, n, SIGNED_MAP, True)
                moments.save_dithered(v_at, v_scale, rows, mask_R, v, words, n, MAP, False)
            else:
                moments.save(m_at, m_scale, rows, mask_R, m, n, SIGNED_MAP, True, BITS, NATIVE)
                moments.save(v_at, v_scale, rows, mask_R, v, n, MAP, False, BITS, NATIVE)
            if AMSGRAD:
                moments.save(u_at, u_scale, rows, mask_R, u, n, MAP, False, BITS, NATIVE)


_LISTS = 8


def _supports(params: Sequence[Tensor], grads: Sequence[Tensor], *others: Any) -> str | None:
    return steps.refusal(params, grads, state_bits=others[7], block_size=others[8])


def _constants(*args: Any) -> dict[str, Any]:
    """Of the kernel, from the arguments of the op."""
    options = {"DECOUPLED": args[11], "MAXIMIZE": args[12]}
    return options | {"AMSGRAD": bool(args[4]), "DITHERED": bool(args[13])}


@adam_step.kernel(
    "triton",
    device=tiles.DEVICES,
    supports=_supports,
    direct=steps.direct_entry(_adam, "adam_step", _LISTS, _constants),
)
def _run(*args: Any) -> None:
    steps.run(_adam, _LISTS, _constants, args, dithers=args[13])
