"""Random calls of the linears: sizes, strides, dtypes, groups, biases and values of every kind.

M tokens, N output features, K input features, G groups. A call is drawn from a seed, so that its
number is enough to have it again.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor

from ao_core.packing import pack
from ao_kernels import Op

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_M = (0, 1, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65, 100)
_N = (1, 2, 3, 7, 15, 16, 17, 31, 32, 48, 64, 65, 130)
_K = (1, 2, 3, 7, 8, 9, 15, 24, 31, 32, 33, 64, 96, 100, 128, 136, 255, 256, 257, 384, 520)
# GPUs have kernels for many tokens and for sizes that models have.
_MORE_M = (64, 66, 128, 129, 200, 513, 700)
_MORE_N = (256, 500, 1024)
_MORE_K = (512, 1024, 2048, 4096)
_LAYOUTS = (
    "plain",
    "plain",
    "3-D",
    "1-D",
    "rows of more",
    "columns of more",
    "every other row",
    "every other column",
    "columns first",
    "one row repeated",
    "anywhere",
)
_VALUES = ("normal", "normal", "normal", "zeros", "small", "large", "one NaN", "one inf", "sparse")
_EVERY_BIAS = (None, None, torch.float32, torch.bfloat16, torch.float16, torch.float64)


def draw(op: Op, number: int, *, large: bool = False) -> tuple[str, tuple[Any, ...]]:
    """What call ``number`` of an op is, in words, and its arguments, on the CPU."""
    rng = random.Random(f"{op.name} {number}")
    torch.manual_seed(rng.randrange(2**31))
    M, N, K = rng.choice(_M), rng.choice(_N), rng.choice(_K)
    if large:
        M, N, K = rng.choice((M, *_MORE_M)), rng.choice((N, *_MORE_N)), rng.choice((K, *_MORE_K))
    dtype, layout, values = rng.choice(DTYPES), rng.choice(_LAYOUTS), rng.choice(_VALUES)
    if layout == "1-D":
        M = 1
    x = _placed(rng, layout, _tokens(rng, values, M, K), dtype)
    names = [argument.name for argument in op.schema.arguments]
    given = {"x": x, **_weight(rng, op.name, names, N, K)}
    bias = rng.choice(_EVERY_BIAS)
    given["bias"] = None if bias is None else _strided(rng, torch.randn(N).to(bias))
    if "x_scale" in names:
        high = 448 if op.name.startswith("float8") else 127
        given["x_scale"] = torch.full((1, 1), rng.choice((3.0, 1e-3, 1e3)) / high)
    if "activation" in names:
        given["activation"] = rng.choice(("tensor", "row", "block"))
    words = [f"{M} x {N} x {K} {dtype}, x {layout}, {values}, bias {bias}"]
    words += [f"{name} {given[name]}" for name in names if isinstance(given[name], (int, str))]
    words += [f"scale {tuple(given['scale'].shape)} {given['scale'].dtype}"]
    return f"{op.name} call {number}: {', '.join(words)}", tuple(given[name] for name in names)


def _tokens(rng: random.Random, values: str, M: int, K: int) -> Tensor:
    x = torch.randn(M, K)
    if values == "zeros":
        return torch.zeros(M, K)
    if values == "small":
        x *= 2.0**-20
    if values == "large":
        x *= 300.0
    if values == "sparse":
        x *= torch.rand(M, K) < 0.1
    if values.startswith("one ") and M:
        bad = math.nan if values == "one NaN" else rng.choice((math.inf, -math.inf))
        x[rng.randrange(M), rng.randrange(K)] = bad
    return x


def _placed(rng: random.Random, layout: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (M, K), or its like, in memory of some layout."""
    x, (M, K) = x.to(dtype), x.shape
    if layout == "3-D":
        return x.view(1, M, K) if M % 2 else x.view(2, M // 2, K)
    if layout == "1-D":
        return x[0]
    if layout == "one row repeated":
        return x[:1].expand(M, K)
    if layout == "columns first":
        return x.T.contiguous().T
    if layout == "anywhere":
        room = torch.full((x.numel() + 3,), math.nan, dtype=dtype)
        return room[rng.randrange(1, 4) :][: x.numel()].view(M, K).copy_(x)
    around = torch.full((2 * M + 3, 2 * K + 5), math.nan, dtype=dtype)  # never to be read
    room = {
        "rows of more": around[: M + 3, :K].contiguous()[2 : M + 2],
        "columns of more": around[:M, : K + 5].contiguous()[:, 3 : K + 3],
        "every other row": around[: 2 * M, :K].contiguous()[::2],
        "every other column": around[:M, : 2 * K].contiguous()[:, ::2],
    }.get(layout)
    return x if room is None else room.copy_(x)


def _strided(rng: random.Random, t: Tensor) -> Tensor:
    """Now and then with strides that no kernel expects, or at an odd address."""
    how = rng.randrange(6)
    if how == 0:
        return torch.stack((t, t), -1)[..., 0]
    if how == 1 and t.dim() == 2:
        return t.T.contiguous().T
    if how == 2:
        room = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        return room.copy_(t)
    return t


def _weight(rng: random.Random, op: str, names: list[str], N: int, K: int) -> dict[str, Any]:
    """Codes, scale and what goes with them, by parameter."""
    if "block_n" in names:
        return _float8_weight(rng, N, K)
    grouped = "group_size" in names
    sizes = [size for size in (8, 16, 24, 32, 40, 64, 96, 128, 256) if size < K]
    group_size = rng.choice([*sizes, K, K + 5]) if grouped else K
    scale_dtype = rng.choice((torch.float32, torch.bfloat16))
    shape = (rng.choice((N, N, N, 1)), -(-K // group_size))
    scale = torch.rand(shape) * rng.choice((1.0, 1e-3, -1.0)) / K**0.5
    if rng.random() < 0.3:
        scale *= torch.rand(shape) < 0.5
    if "zero" not in names:
        codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
        if op == "int8_linear":
            scale = (scale / 64).to(scale_dtype)
        scale = _with_nan(rng, scale.to(scale_dtype))
        given = {"codes": _strided(rng, codes), "scale": _strided(rng, scale)}
        return {**given, "group_size": group_size}
    bits = rng.randrange(1, 9) if "bits" in names else 4
    codes = pack(torch.randint(0, 2**bits, (N, K), dtype=torch.uint8), bits)
    if rng.random() < 0.5:  # what is behind the last feature means nothing
        codes |= ~pack(torch.full((N, K), 2**bits - 1, dtype=torch.uint8), bits)
    scale = (scale / 2**bits).to(scale_dtype)
    scale = _with_nan(rng, scale)
    zero = None
    if rng.random() < 0.6:
        zero = torch.rand(shape) * (2**bits - 1)
        zero = _strided(rng, (zero.round() if rng.random() < 0.5 else zero).to(scale_dtype))
    given = {"codes": _strided(rng, codes), "scale": _strided(rng, scale), "zero": zero}
    return {**given, "group_size": group_size, "bits": bits}


def _with_nan(rng: random.Random, scale: Tensor) -> Tensor:
    """Now and then a group of weights that are NaN."""
    if rng.random() < 0.15:
        scale[rng.randrange(len(scale)), rng.randrange(scale.shape[1])] = math.nan
    return scale


def _float8_weight(rng: random.Random, N: int, K: int) -> dict[str, Any]:
    kind = rng.choice((torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2))
    codes = (torch.randn(N, K) * 64).to(kind)
    block_n = rng.choice((1, 1, 3, 32, 128, N, 1 << 30))
    block_k = rng.choice([*(size for size in (8, 32, 64, 128) if size < K), K, 1 << 30])
    shape = (-(-N // block_n), -(-K // block_k))
    scale = torch.rand(shape) * rng.choice((1.0, 1e-3)) / (64 * K**0.5)
    if rng.random() < 0.3:
        scale *= torch.rand(shape) < 0.5
    as_bytes = _strided(rng, codes.view(torch.uint8))
    given = {"codes": as_bytes.view(kind), "scale": _strided(rng, _with_nan(rng, scale))}
    return {**given, "block_n": block_n, "block_k": block_k}
