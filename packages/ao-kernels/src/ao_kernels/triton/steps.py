"""What the Triton kernels of optimizers share: tables, launches, roots and rounding.

A row of the table has, as int64: the number of elements; addresses of the parameter, the gradient,
and values and scales of up to three moments; the index of the first element in the whole
parameter and the key of random bits; the start of the dither.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ao_kernels.ops.moments import changed, ready, sent
from ao_kernels.triton import moments, tiles

COLUMNS = tl.constexpr(12)
_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# A program is one warp, whose threads have 8 elements: 16 bytes of bfloat16. So a block of 256 is a
# warp's own, and no barrier waits for the others to store its scale.
# The interpreter takes longer for each operation than for what it does.
_WARPS, _TILE, _TILES = (1, 2048, 2) if tiles.INTERPRETED else (1, 256, 8)
_LONGEST_BLOCK = 8192


@triton.jit
def pointer(at, DTYPE: tl.constexpr, RAGGED: tl.constexpr):
    """The address that the table has there, a multiple of 16 unless RAGGED."""
    address = tl.load(at).to(tl.pointer_type(DTYPE))
    if not RAGGED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def root(x, FAST: tl.constexpr):
    if FAST:
        found = tl.sqrt(x)
    else:
        found = tl.sqrt_rn(x)
    return found


@triton.jit
def less(p, m, root, size, FAST: tl.constexpr):
    """p - m / root * size, with root below 2**126.

    FAST: the quotient is a product with an approximate inverse, in two instructions. Triton's own
    takes eight, for roots that do not occur.
    """
    if FAST:
        quotient = tl.inline_asm_elementwise(
            "div.approx.ftz.f32 $0, $1, $2;", "=f,f,f", [m, root], tl.float32, True, 1
        )
        found = tl.fma(quotient, -size, p)
    else:
        found = p - tl.div_rn(m, root) * size
    return found


@triton.jit
def rounded(x, DTYPE: tl.constexpr, FAST: tl.constexpr):
    """To nearest, halves to even. To bfloat16 by hand in the interpreter, which truncates."""
    if FAST or tl.bfloat16 != DTYPE:
        found = x.to(DTYPE)
    else:
        bits = x.to(tl.int32, bitcast=True)
        even = (bits >> 16) & 1
        upper = tl.where(x == x, (bits + 0x7FFF + even) >> 16, 0x7FC0)
        found = upper.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return found


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def stochastic(x, index, key):
    """To bfloat16, by the random bits of `ao_core.rounding`."""
    pair = index >> 1
    word_key = key.to(tl.uint32)
    word = _mix(pair.to(tl.uint32) + word_key)
    word = _mix(word + (pair >> 32).to(tl.uint32) + _mix(word_key))
    random = (word >> ((index & 1) << 4).to(tl.uint32)) & 0xFFFF
    bits = x.to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    upper = tl.where(finite, bits + random, bits | ((x != x).to(tl.uint32) << 22)) >> 16
    return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True)


def refusal(
    params: Sequence[Tensor], grads: Sequence[Tensor], state_bits: str, block_size: int
) -> str | None:
    """Why no Triton kernel takes a step, or None."""
    if not params:
        return "there are no parameters"
    for name, x in (("parameters", params[0]), ("gradients", grads[0])):
        if x.dtype not in _TYPES:
            return f"{name} are {x.dtype}; the Triton kernels take float32, bfloat16 and float16"
    if state_bits != "32" and (block_size & (block_size - 1) or block_size > _LONGEST_BLOCK):
        return f"block_size is {block_size}; the Triton kernels take powers of two up to 8192"
    return None


def run(
    kernel: Any,
    n_lists: int,
    constants_of: Callable[..., dict[str, Any]],
    args: tuple[Any, ...],
    dithers: Sequence[int] = (),
) -> None:
    """Launches a kernel over all parameters, from the arguments of its op, of which the first
    ``n_lists`` are lists; ``constants_of`` gives the kernel's constants.

    Parameters, gradients and full moments that are not contiguous are copied, and copied back.
    """
    params, grads, *state = args[:n_lists]
    scalars, state_bits, block_size = args[n_lists : n_lists + 3]
    keys, offsets = args[-2:]
    n_moments = len(state) // 2
    pairs = zip(state[:n_moments], state[n_moments:], strict=True)  # values and scales
    state = [each for pair in pairs for each in pair]
    lists, copied = ready((params, grads, *state))
    addresses = [[x.data_ptr() for x in each] or [0] * len(params) for each in lists]
    columns = [[x.numel() for x in params], *addresses]
    columns += [[0] * len(params)] * (9 - len(columns))
    stochastic = bool(keys) and params[0].dtype == torch.bfloat16
    columns += [list(offsets), list(keys)] if stochastic else [[0] * len(params)] * 2
    columns.append(list(dithers) or [0] * len(params))
    table = torch.tensor(columns, dtype=torch.int64).t().contiguous()
    constants = constants_of(*args)
    _launch(
        kernel, table, params[0], grads[0], scalars, state_bits, block_size, stochastic, constants
    )
    for given, used in copied:
        if not any(given is g for g in grads):
            given.copy_(used)
    changed((params, *state))


def direct_entry(kernel: Any, op: str, n_lists: int, constants_of: Callable[..., Any]) -> Any:
    """The direct entry of a kernel, for tensors as they are, whose checks and table are compiled
    (csrc/step_table.cpp): 300 parameters take 0.2 ms of the host, by `run` and its checks 4.

    The op's first ``n_lists`` arguments are lists; ``constants_of`` is that of `run`.
    """

    def direct(token: int, *args: Any) -> Any:
        from ao_kernels import cpu

        if cpu._C is None or len(args) <= n_lists + 4:
            return NotImplemented
        scalars, state_bits, block_size = args[n_lists : n_lists + 3]
        if state_bits != "32" and block_size & (block_size - 1):
            return NotImplemented
        table = getattr(cpu._C, op + "_table")(0, *args)
        if table is NotImplemented:
            return NotImplemented
        p, g = args[0][0], args[1][0]
        stochastic = bool(args[-2]) and p.dtype == torch.bfloat16
        constants = constants_of(*args)
        _launch(kernel, table, p, g, scalars, state_bits, block_size, stochastic, constants)
        changed((args[0], *args[2:n_lists]))
        return None

    return direct


def _launch(
    kernel: Any,
    table: Tensor,
    p: Tensor,
    g: Tensor,
    scalars: Tensor,
    state_bits: str,
    block_size: int,
    stochastic: bool,
    constants: dict[str, Any],
) -> None:
    """Over the rows of a table on the CPU, of parameters and gradients like p and g."""
    device = p.device
    n = 256 if state_bits == "32" else block_size
    rows = max(1, _TILE // n)
    numels = tuple(table[:, 0].tolist())
    aligned = tuple((table[:, 1:9] % 16 == 0).all(1).tolist())
    table = sent(table, device)
    scalars = sent(scalars.contiguous(), device)  # one row may stand for all
    for ragged, places in enumerate(_places(numels, aligned, n, rows * _TILES, device)):
        if places is None:
            continue
        with _on(device):
            kernel[(len(places),)](
                table,
                scalars,
                places,
                P=_TYPES[p.dtype],
                G=_TYPES[g.dtype],
                n=n,
                R=rows,
                TILES=_TILES,
                RAGGED=bool(ragged),
                STOCHASTIC=stochastic,
                **constants,
                **moments.constants(state_bits, device),
                FAST=not tiles.INTERPRETED,
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )


@functools.lru_cache(maxsize=64)
def _places(
    numels: tuple[int, ...], aligned: tuple[bool, ...], n: int, rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(programs, 2) int32 on the device: the parameter of each program, and which of its parts of
    ``rows`` rows; those whose parts are whole blocks at aligned addresses, and the others."""
    regular, ragged = [], []
    for i, numel in enumerate(numels):
        parts = -(-numel // (n * rows))
        places = torch.stack(
            (torch.full((parts,), i, dtype=torch.int32), torch.arange(parts, dtype=torch.int32)), 1
        )
        whole = 0 if not aligned[i] else parts if numel % n == 0 else parts - 1
        regular.append(places[:whole])
        ragged.append(places[whole:])
    found = (torch.cat(regular), torch.cat(ragged))
    return tuple(None if len(each) == 0 else sent(each, device) for each in found)  # type: ignore


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device if device.type == "cuda" else -1)
