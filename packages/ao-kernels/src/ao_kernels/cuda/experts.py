"""What the CUDA kernels of the linears of experts accept.

T tokens sorted by expert, E experts, N output features, K input features. How many rows an expert
has, on average, chooses between a kernel for few tokens and one for many (docs/decisions/0025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_kernels import _cuda
from ao_kernels.cuda import weight

MOST_EXPERTS = 1024  # kMostExperts in experts.h
FEW_ROWS = 8  # few_rows in grouped_weight_only.cu
FEW_ROWS_OF_BYTES = 3
_MOST_BLOCKS = 65535
_LAST = 2**31 - 257  # rows of all experts are counted in 32 bits
_LONGEST = 32768  # kMostColumns in quantize_tokens.h
_BIAS_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows_of(x: Tensor, codes: Tensor) -> int:
    """Of an expert that has any, when the rows of x are spread evenly."""
    used = min(x.shape[0], codes.shape[0])
    return -(-x.shape[0] // used) if used else 0


def common_refusal(
    x: Tensor, codes: Tensor, offsets: Tensor, bias: Tensor | None, *fields: Tensor | None
) -> str | None:
    """What no CUDA kernel of experts takes of arguments that passed the op's check, or None."""
    E, N = codes.shape[:2]
    if x.numel() == 0 or N == 0:
        return "there are no values"
    if bias is not None and bias.dtype not in _BIAS_DTYPES:
        return f"bias has dtype {bias.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    for tensor in (codes, offsets, bias, *fields):
        if tensor is not None and tensor.device != x.device:
            return f"the arguments are on {x.device} and {tensor.device}"
    if E > MOST_EXPERTS:
        return f"there are {E} experts; the CUDA kernels take up to {MOST_EXPERTS}"
    if E * N > _LAST or x.shape[0] >= 2**30:
        return f"{E} experts of {N} rows, or {x.shape[0]} tokens, are too many for the CUDA kernels"
    return weight._device_refusal(x.device.index) or None


def weight_only_refusal(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group_size: int,
    offsets: Tensor,
    bias: Tensor | None,
    group_name: str = "group_size",
) -> str | None:
    """Why no CUDA kernel of weight-only experts takes these arguments, or None."""
    if x.dtype != torch.bfloat16:
        return f"x has dtype {x.dtype}; the CUDA kernels of experts take bfloat16"
    reason = common_refusal(x, codes, offsets, bias, scale, zero)
    if reason:
        return reason
    K, packed = x.shape[1], codes.dtype == torch.uint8
    if codes.dtype not in (torch.uint8, torch.int8, torch.float8_e4m3fn):
        return f"codes have dtype {codes.dtype}; the CUDA kernels of experts take float8_e4m3fn"
    if K % 32:
        return f"x has {K} input features; the CUDA kernels take multiples of 32"
    rows, grouped = rows_of(x, codes), group_size < K
    few = rows <= (FEW_ROWS if packed else FEW_ROWS_OF_BYTES)
    if few:
        most = weight._most_token_values(x.device.index)
        if most < 16 * K:
            return f"x has {K} input features; the CUDA kernels take up to {most // 16}"
        if grouped and group_size % (32 if packed else 128):
            return f"{group_name} is {group_size}; with few rows it is 32 * n or, of bytes, 128 * n"
        if scale[0].numel() > 2**29:
            return f"an expert has {scale[0].numel()} scales; the CUDA kernels take up to {2**29}"
        if x.shape[0] > _MOST_BLOCKS:
            return f"x has {x.shape[0]} tokens; with few rows an expert up to {_MOST_BLOCKS}"
        return None
    return weight._many_tokens(x.device.index) or _many_refusal(
        codes, scale, zero, group_size if grouped else None, group_name
    )


def _many_refusal(
    codes: Tensor, scale: Tensor, zero: Tensor | None, group_size: int | None, group_name: str
) -> str | None:
    """group_size: None for a group that spans the row."""
    if group_size is None:
        return "zeros go with groups here, not with rows" if zero is not None else None
    if group_size % 128 and (codes.dtype != torch.uint8 or group_size not in (32, 64)):
        return f"{group_name} is {group_size}; it must be 128 * n or, of int4 codes, 32 or 64"
    wanted = torch.float32 if codes.dtype.is_floating_point else torch.bfloat16
    if scale.dtype != wanted:
        return f"scale has dtype {scale.dtype}; with many rows an expert it is {wanted}"
    return None


def bytes_refusal(
    x: Tensor, codes: Tensor, scale: Tensor, offsets: Tensor, bias: Tensor | None
) -> str | None:
    """Why no CUDA kernel of experts of 8-bit codes and activations takes these, or None."""
    if x.dtype not in _BIAS_DTYPES:
        return f"x has dtype {x.dtype}; the CUDA kernels take float32, bfloat16 and float16"
    reason = common_refusal(x, codes, offsets, bias, scale)
    if reason:
        return reason
    K = x.shape[1]
    if K % 16 or K > _LONGEST:
        return f"x has {K} input features; these kernels take multiples of 16 up to {_LONGEST}"
    return _byte_refusal(x.device.index) or None


def product_refusal(a: Tensor, b: Tensor, ends: Tensor) -> str | None:
    """Why the CUDA kernel of products of experts takes no such operands, or None.

    a (M, K), b (E, N, K) with ends of rows, or b (N, K) with ends of the K places that the
    products of each expert are summed over."""
    for codes in (a, b):
        if codes.dtype != torch.float8_e4m3fn:
            return f"codes have dtype {codes.dtype}; the CUDA kernels take torch.float8_e4m3fn"
    if a.numel() == 0 or b.numel() == 0:
        return "there are no values"
    (M, K), N, E = a.shape, b.shape[-2], len(ends)
    if K % 16:
        return f"rows have {K} codes; the CUDA kernels take multiples of 16"
    if E > MOST_EXPERTS:
        return f"there are {E} experts; the CUDA kernels take up to {MOST_EXPERTS}"
    tiles = -(-N // 128) * (E * -(-M // 128) if b.dim() == 2 else M // 128 + E + 1)
    if max(M, K, E * N, tiles) >= 2**30:
        return f"{M} x {K} by {E} x {N} x {K} codes are too many for the CUDA kernels"
    return _byte_refusal(a.device.index) or None


# torch.compile asks for reasons too, and cannot look into a compiled function.
@torch.compiler.assume_constant_result
def _byte_refusal(index: int) -> str:
    return _cuda.byte_product_refusal(index)
