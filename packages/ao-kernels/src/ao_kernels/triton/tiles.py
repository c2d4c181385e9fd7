"""How a Triton linear cuts its work, and what it accepts.

M tokens, N output features, K input features. A program computes a (BLOCK_N, BLOCK_M) tile of the
transposed result: the weights stand on the left of tl.dot, where the wide side of the matrix
instruction is, and the tokens on the right, which can be narrow. Where that gives too few programs
to fill the device, K is split, and ``partials.finish`` adds the parts in a fixed order: no atomics,
so that bits repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)

_X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # compute capability
# Few, for the interpreter is slow, but enough to split K in the small shapes of the tests.
_INTERPRETED_MULTIPROCESSORS = 4


class Tile(NamedTuple):
    """Sizes of a launch: ``programs`` is how many a multiprocessor should have at least."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    programs: int

    def grid(self, M: int, N: int, splits: int) -> tuple[int, int]:
        return triton.cdiv(M, self.block_m) * triton.cdiv(N, self.block_n), splits

    def split(
        self, M: int, N: int, n_steps: int, device: torch.device, *, most: int | None = None
    ) -> tuple[int, int]:
        """Number of splits of ``n_steps`` steps over K, and steps (at most ``most``) of each."""
        n_programs, _ = self.grid(M, N, 1)
        splits = multiprocessors(device) * self.programs // n_programs
        splits = max(1, min(splits, n_steps // 4, 16))
        steps = min(triton.cdiv(n_steps, splits), most or n_steps)
        return triton.cdiv(n_steps, steps), steps


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The row of tiles along M, and along N, of a program.

    Neighbours share weights: all tiles along M come first, or those of GROUP rows, which keeps what
    the programs in flight read nearly square, and in the L2 cache.
    """
    if GROUP == 0:
        return tile % tiles_m, tile // tiles_m
    per_group = GROUP * tiles_n
    first = (tile // per_group) * GROUP
    rows = min(tiles_m - first, GROUP)
    within = tile % per_group
    return first + within % rows, within // rows


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have; on other devices that of the smallest GPUs."""
    least = 99 << 10
    if device.type != "cuda":
        return least
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", least))


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


def eager(direct: Callable[..., Any]) -> Callable[..., Any] | None:
    """The direct entry of a kernel; none in the interpreter, where tensors are on the CPU."""
    return None if INTERPRETED else direct


def dtype_refusal(x: Tensor) -> str | None:
    """Why no Triton kernel takes activations like x on their device, or None."""
    if x.dtype not in _X_DTYPES:
        return f"x has dtype {x.dtype}; the Triton kernels take float32, bfloat16 and float16"
    return None if x.device.type != "cuda" else _device_refusal(x.device.index) or None


# torch.compile asks for reasons too, and cannot look into CUDA.
@torch.compiler.assume_constant_result
def _device_refusal(index: int) -> str:
    """Or "". What is older has no instructions for bfloat16."""
    found = torch.cuda.get_device_capability(index)
    if found >= _OLDEST:
        return ""
    name = torch.cuda.get_device_name(index)
    return (
        f"{name} has compute capability {found[0]}.{found[1]}; the Triton kernels need "
        f"{_OLDEST[0]}.{_OLDEST[1]} or later"
    )


def refusal(x: Tensor, bias: Tensor | None, *weights: Tensor | None) -> str | None:
    """Why no Triton linear takes these arguments (which passed the op's check), or None."""
    refused = dtype_refusal(x)
    if refused is not None:
        return refused
    if bias is not None and bias.dtype not in _X_DTYPES:
        return f"bias has dtype {bias.dtype}; the Triton kernels take float32, bfloat16 and float16"
    if x.shape[-1] == 0:
        return "x has no input features"
    for tensor in (bias, *weights):
        if tensor is not None and tensor.device != x.device:
            return f"the arguments are on {x.device} and {tensor.device}"
    return None
