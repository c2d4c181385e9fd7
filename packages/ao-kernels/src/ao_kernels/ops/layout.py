"""The canonical weight layouts as the ops receive them: checks and dequantization in plain torch.

N output features, K input features, G = ceil(K / group_size) groups, b bits.

    int8   w = code * scale             codes (N, K) int8
                                        scale (N or 1, G)
    intx   w = (code - zero) * scale    codes (N, ceil(K/8)*b) uint8
                                        scale (N or 1, G)
                                        zero like scale, or None meaning 2**(b-1)
    float8 w = code * scale             codes (N, K) e4m3 or e5m2
                                        scale (ceil(N / block_n), ceil(K / block_k)) float32:
                                        block_n x block_k codes share one
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ao_core.packing import packed_bytes, unpack

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALE_DTYPES = (torch.bfloat16, torch.float32)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
INDEX_DTYPES = (torch.int32, torch.int64)
CODE_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def check_activation(op: str, x: Tensor) -> None:
    """x must be (..., K) of a floating dtype that the ops know."""
    if x.dtype not in ACTIVATION_DTYPES:
        allowed = ", ".join(str(dtype) for dtype in ACTIVATION_DTYPES)
        raise TypeError(f"{op}: x has dtype {x.dtype}; allowed are {allowed}")
    if x.dim() == 0:
        raise ValueError(f"{op}: x has no dimension; its last one must be the input features K")


def count_rows(x: Tensor) -> int:
    """Rows of (..., K), which -1 in a reshape cannot tell where K is 0."""
    return math.prod(x.shape[:-1])


def check_code_dtype(op: str, dtype: torch.dtype) -> None:
    """The dtype that an activation is quantized to."""
    if dtype not in CODE_DTYPES:
        allowed = ", ".join(str(each) for each in CODE_DTYPES)
        raise TypeError(f"{op}: dtype is {dtype}; allowed are {allowed}")


def check_bias(op: str, bias: Tensor | None, n_features: int) -> None:
    """bias must be (N,) of a floating dtype, or None."""
    if bias is None:
        return
    if bias.shape != (n_features,):
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}; codes have {n_features} rows, "
            f"so it must be ({n_features},)"
        )
    if bias.dtype not in ACTIVATION_DTYPES:
        raise TypeError(f"{op}: bias has dtype {bias.dtype}; it must be a floating dtype")


def check_intx(
    op: str,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group_size: int,
    length: int,
) -> None:
    """Packed codes of ``length`` input features with their scales and zeros."""
    if not 1 <= bits <= 8:
        raise ValueError(f"{op}: bits is {bits}; codes have 1 to 8 bits")
    _check_matrix(op, "codes", codes, torch.uint8)
    n_bytes = packed_bytes(length, bits)
    if codes.shape[1] != n_bytes:
        raise ValueError(
            f"{op}: codes have {codes.shape[1]} bytes a row; "
            f"{length} input features of {bits} bits take {n_bytes}"
        )
    _check_scale(op, codes.shape[0], scale, group_size, length)
    if zero is not None and (zero.shape != scale.shape or zero.dtype != scale.dtype):
        raise ValueError(
            f"{op}: zero is {tuple(zero.shape)} {zero.dtype}; it must be like scale, "
            f"{tuple(scale.shape)} {scale.dtype}, or None for 2**(bits-1)"
        )


def check_int8(op: str, codes: Tensor, scale: Tensor, group_size: int, length: int) -> None:
    """int8 codes of ``length`` input features with their scales."""
    _check_matrix(op, "codes", codes, torch.int8)
    if codes.shape[1] != length:
        raise ValueError(
            f"{op}: codes have {codes.shape[1]} columns; x has {length} input features"
        )
    _check_scale(op, codes.shape[0], scale, group_size, length)


def check_float8(
    op: str, codes: Tensor, scale: Tensor, block_n: int, block_k: int, length: int
) -> None:
    """float8 codes of ``length`` input features with the scales of their blocks."""
    if codes.dtype not in FLOAT8_DTYPES:
        allowed = " or ".join(map(str, FLOAT8_DTYPES))
        raise TypeError(f"{op}: codes have dtype {codes.dtype}; they must be {allowed}")
    if codes.dim() != 2:
        raise ValueError(
            f"{op}: codes have shape {tuple(codes.shape)}; a weight has two dimensions"
        )
    n_rows = codes.shape[0]
    if codes.shape[1] != length:
        raise ValueError(
            f"{op}: codes have {codes.shape[1]} columns; x has {length} input features"
        )
    if scale.dtype != torch.float32:
        raise TypeError(f"{op}: scale has dtype {scale.dtype}; it must be torch.float32")
    if block_n < 1 or block_k < 1 or (block_k < length and block_k % 8):
        raise ValueError(
            f"{op}: blocks are {block_n} x {block_k}; block_n is positive, block_k a multiple of 8 "
            f"or at least {length} for whole rows"
        )
    blocks = (-(-n_rows // block_n), -(-length // block_k))
    if scale.dim() != 2 or any(
        found != wanted and (found != 1 or wanted > 1)  # of no rows, a whole tensor has one scale
        for found, wanted in zip(scale.shape, blocks, strict=True)
    ):
        raise ValueError(
            f"{op}: scale has shape {tuple(scale.shape)}; {n_rows} rows of {length} input features "
            f"in blocks of {block_n} x {block_k} take {blocks}"
        )


def check_static_scale(op: str, x_scale: Tensor) -> None:
    """x_scale must be (1, 1) float32: one scale for all activations."""
    if x_scale.dtype != torch.float32:
        raise TypeError(f"{op}: x_scale has dtype {x_scale.dtype}; it must be torch.float32")
    if x_scale.shape != (1, 1):
        raise ValueError(f"{op}: x_scale has shape {tuple(x_scale.shape)}; it must be (1, 1)")


def check_devices(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Everything must be where x is."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(
                f"{op}: the first argument is on device {x.device} and {name} on {tensor.device}; "
                "move them to one device"
            )


def check_indices(op: str, indices: Tensor, dtype: torch.dtype) -> None:
    """Indices of embedding rows, and the dtype of the rows."""
    if indices.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: indices have dtype {indices.dtype}; they must be int32 or int64")
    if dtype not in ACTIVATION_DTYPES:
        allowed = ", ".join(str(each) for each in ACTIVATION_DTYPES)
        raise TypeError(f"{op}: dtype is {dtype}; allowed are {allowed}")


def select_rows(indices: Tensor, codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of codes and scale that ``indices`` name; a scale of one row serves all.

    IndexError like F.embedding.
    """
    rows = embedding(indices, codes)
    return rows, embedding(torch.zeros_like(indices) if scale.shape[0] == 1 else indices, scale)


def dequantize_intx(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    *,
    bits: int,
    group_size: int,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    """w_NK = (code - zero) * scale in ``dtype``."""
    q_NK = unpack(codes, bits, length).to(dtype)
    zero_point = (
        float(2 ** (bits - 1))
        if zero is None
        else expand_groups(zero.to(dtype), group_size, length)
    )
    return (q_NK - zero_point) * expand_groups(scale.to(dtype), group_size, length)


def dequantize_int8(codes: Tensor, scale: Tensor, *, group_size: int, dtype: torch.dtype) -> Tensor:
    """w_NK = code * scale in ``dtype``."""
    return codes.to(dtype) * expand_groups(scale.to(dtype), group_size, codes.shape[1])


def dequantize_float8(
    codes: Tensor, scale: Tensor, block_n: int, block_k: int, dtype: torch.dtype
) -> Tensor:
    """w_NK = code * scale in ``dtype``."""
    return codes.to(dtype) * expand_blocks(scale.to(dtype), block_n, block_k, codes.shape)


def expand_blocks(scale: Tensor, block_n: int, block_k: int, shape: tuple[int, ...]) -> Tensor:
    """One scale a block -> (N, K), or 1 instead of N or K where one block spans all."""
    scale = expand_groups(scale, block_k, shape[1])
    return expand_groups(scale.T, block_n, shape[0]).T if block_n > 1 else scale


def expand_groups(scale: Tensor, group_size: int, length: int) -> Tensor:
    """(R, G) per group -> (R, K) per input feature, or (R, 1) where one group spans the row."""
    if scale.shape[1] == 1:
        return scale
    return scale.repeat_interleave(group_size, dim=1)[:, :length]


def linear(x: Tensor, w_NK: Tensor, bias: Tensor | None) -> Tensor:
    """x @ w.T + bias in the dtype of w, rounded once to the dtype of x."""
    y = x.to(w_NK.dtype) @ w_NK.T
    if bias is not None:
        y = y + bias.to(w_NK.dtype)
    return y.to(x.dtype)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a reference multiplies and adds: float32, or float64 for float64
    activations."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def linear_grads(
    grad: Tensor, x: Tensor, w_NK: Tensor | None, bias: Tensor | None, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`linear` with respect to x and bias; ``needs`` says which are wanted."""
    grad_x = grad_bias = None
    if needs[0]:
        assert w_NK is not None
        grad_x = (grad.to(w_NK.dtype) @ w_NK).to(x.dtype)
    if needs[1] and bias is not None:
        grad_bias = grad.to(sum_dtype(grad)).flatten(0, -2).sum(0).to(bias.dtype)
    return grad_x, grad_bias


def _check_matrix(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} have dtype {tensor.dtype}; they must be {dtype}")
    if tensor.dim() != 2:
        raise ValueError(
            f"{op}: {name} have shape {tuple(tensor.shape)}; a weight has two dimensions"
        )


def _check_scale(op: str, n_rows: int, scale: Tensor, group_size: int, length: int) -> None:
    if scale.dtype not in SCALE_DTYPES:
        raise TypeError(f"{op}: scale has dtype {scale.dtype}; it must be bfloat16 or float32")
    if group_size < 1 or (group_size < length and group_size % 8):
        raise ValueError(
            f"{op}: group_size is {group_size}; it must be a multiple of 8, "
            f"or at least {length} for one group a row"
        )
    n_groups = -(-length // group_size)
    if scale.dim() != 2 or scale.shape[0] not in (1, n_rows) or scale.shape[1] != n_groups:
        raise ValueError(
            f"{op}: scale has shape {tuple(scale.shape)}; {n_rows} rows of {length} input features "
            f"in groups of {group_size} take ({n_rows}, {n_groups}) or (1, {n_groups})"
        )
