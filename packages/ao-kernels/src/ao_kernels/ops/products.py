"""Products of quantized operands: what the matmul ops of training share.

M rows of a, N rows of b, K features that both share. Which elements share a scale is told by the
scale's shape: that is what the ``quantize_*_both`` ops give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core import mx
from ao_kernels.ops import layout
from ao_kernels.ops.quantize_block_both import BLOCK

E8M0 = torch.float8_e8m0fnu


def kind_of(codes: Tensor, scale: Tensor) -> str | None:
    """What shares a scale: "tensor", "row", "1x128", "128x128" or "mx"; None for other shapes.

    Where one kind is another (one block is a row), the first of them.
    """
    rows, features = codes.shape
    shape = tuple(scale.shape)
    if scale.dtype == E8M0:
        return "mx" if shape == (rows, -(-features // mx.MX_BLOCK)) else None
    blocks = -(-features // BLOCK)
    if scale.numel() == 1:
        return "tensor"
    if shape in ((rows,), (rows, 1)):
        return "row"
    if shape == (rows, blocks):
        return "1x128"
    return "128x128" if shape == (-(-rows // BLOCK), blocks) else None


def check_operand(op: str, name: str, codes: Tensor, scale: Tensor) -> None:
    """Codes (R, K) of a float8 and a scale that fits."""
    if codes.dtype not in layout.FLOAT8_DTYPES:
        allowed = " or ".join(map(str, layout.FLOAT8_DTYPES))
        raise TypeError(
            f"{op}: {name} has dtype {codes.dtype}; both operands must be quantized, {allowed}"
        )
    if codes.dim() != 2:
        raise ValueError(f"{op}: {name} has shape {tuple(codes.shape)}; it must be a matrix")
    if scale.dtype not in (torch.float32, E8M0):
        raise TypeError(
            f"{op}: {name}_scale has dtype {scale.dtype}; it must be torch.float32, or {E8M0} of "
            "MX blocks"
        )
    if kind_of(codes, scale) is None:
        R, K = codes.shape
        if scale.dtype == E8M0:
            allowed = f"{(R, -(-K // mx.MX_BLOCK))}"
        else:
            G, H = -(-K // BLOCK), -(-R // BLOCK)
            allowed = f"() for a tensor, {(R, 1)} for rows, {(R, G)} or {(H, G)} for blocks"
        raise ValueError(
            f"{op}: {name}_scale has shape {tuple(scale.shape)}; codes of {R} x {K} take {allowed}"
        )


def at_end(kind: str | None) -> bool:
    """Whether a scale is the same for all of K: it can be multiplied after the sum."""
    return kind in ("tensor", "row")


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """(M, N) float32 in plain torch: products and sums in float32."""
    kinds = kind_of(a, a_scale), kind_of(b, b_scale)
    if at_end(kinds[0]) and at_end(kinds[1]):
        y = a.float() @ b.float().T
        return y * a_scale.reshape(-1, 1) * b_scale.reshape(1, -1)
    return dequantize(a, a_scale, torch.float32) @ dequantize(b, b_scale, torch.float32).T


def dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes * scale, formed in float32 and rounded to ``dtype``."""
    kind = kind_of(codes, scale)
    if kind == "mx":
        return mx.dequantize_mx(codes, scale, dtype=dtype)
    if at_end(kind):
        return (codes.float() * scale.reshape(-1, 1)).to(dtype)
    rows = BLOCK if kind == "128x128" else 1
    return layout.dequantize_float8(codes, scale, rows, BLOCK, torch.float32).to(dtype)


def finish(y: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
    """The bias, and one rounding to the dtype of the result."""
    if bias is not None:
        y = y + bias.detach().to(y.dtype)
    return y.to(out_dtype or torch.bfloat16)


def check_result(op: str, bias: Tensor | None, n_rows: int, out_dtype: torch.dtype | None) -> None:
    """The bias (N,) and the dtype of the result."""
    if bias is not None and (bias.shape != (n_rows,) or not bias.is_floating_point()):
        raise ValueError(
            f"{op}: bias is {tuple(bias.shape)} {bias.dtype}; b has {n_rows} rows, so it must be "
            f"({n_rows},) of a floating dtype"
        )
    if out_dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(
            f"{op}: out_dtype is {out_dtype}; allowed are torch.bfloat16, torch.float16 and "
            "torch.float32"
        )
