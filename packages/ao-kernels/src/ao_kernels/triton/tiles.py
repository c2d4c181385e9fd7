"""How a Triton linear cuts its work, and what it accepts.

M tokens, N output features, K input features. A program computes a (BLOCK_N, BLOCK_M) tile of the
transposed result: the weights stand on the left of tl.dot, where the wide side of the matrix
instruction is, and the tokens on the right, which can be narrow. Where that gives too few programs
to fill the device, K is split, and ``partials.finish`` adds the parts in a fixed order: no atomics,
so that bits repeat.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)

_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTERPRETED_PROGRAMS = (
    8  # few enough for the interpreter, enough to split K of the small shapes in tests
)


class Tiles(NamedTuple):
    """Sizes of a launch; ``steps`` is the number of BLOCK_K steps that a program takes."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int
    steps: int


def cut(
    M: int,
    N: int,
    n_steps: int,
    device: torch.device,
    *,
    tiles: tuple[int, ...],
    most_steps: int | None = None,
) -> Tiles:
    """Splits ``n_steps`` steps over K so that there are programs enough.

    ``tiles`` are the first five fields; a program takes at most ``most_steps`` steps.
    """
    block_m, block_n, block_k, warps, stages = tiles
    n_programs = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    splits = max(1, min(_programs_wanted(device) // n_programs, n_steps // 4, 16))
    steps = min(triton.cdiv(n_steps, splits), most_steps or n_steps)
    return Tiles(block_m, block_n, block_k, warps, stages, triton.cdiv(n_steps, steps), steps)


@functools.cache
def _programs_wanted(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launches inside go to ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def rows(x: Tensor) -> Tensor:
    """(..., K) -> (M, K) whose last stride is 1."""
    x_MK = x.resolve_neg().reshape(-1, x.shape[-1])
    return x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()


def row_stride(scale: Tensor) -> int:
    """Elements between the scales of two rows: 0 where all rows share them."""
    return 0 if scale.shape[0] == 1 else scale.stride(0)


def operand(dtype: torch.dtype) -> tl.dtype:
    """The dtype in which tl.dot multiplies activations; float32 ones come as bfloat16 planes.

    Triton's interpreter has no bfloat16 arithmetic: there it is float32.
    """
    if INTERPRETED:
        return tl.float32
    return tl.float16 if dtype == torch.float16 else tl.bfloat16


def refusal(x: Tensor, bias: Tensor | None, *weights: Tensor | None) -> str | None:
    """Why no Triton linear takes these arguments (which passed the op's check), or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the Triton kernels take float32, bfloat16 and float16"
    if bias is not None and bias.dtype not in _X_DTYPES:
        return f"bias has dtype {bias.dtype}; the Triton kernels take float32, bfloat16 and float16"
    if x.shape[-1] == 0:
        return "x has no input features"
    for tensor in (bias, *weights):
        if tensor is not None and tensor.device != x.device:
            return f"the arguments are on {x.device} and {tensor.device}"
    return None
