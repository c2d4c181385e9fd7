"""Activations to float8 in Triton: what the linears with float8 activations share.

M tokens, K input features. The launches are those of the quantize ops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ao_kernels.cpu.weight import aligned
from ao_kernels.triton import codes as float8
from ao_kernels.triton import launch, tiles
from ao_kernels.triton.float8_product import FEW
from ao_kernels.triton.quantize_block import MOST, block_launch
from ao_kernels.triton.quantize_rowwise import row_launch, row_refusal
from ao_kernels.triton.quantize_tensorwise import TensorPlan, launch_plan, tensor_plan

_E4M3 = torch.float8_e4m3fn
FAST_SUM = 4096


class Tokens(NamedTuple):
    """``together``: all tokens share a scale; else ``quantize`` does it."""

    codes: launch.Room
    scale: launch.Room
    quantize: launch.Launch | None
    together: TensorPlan | None

    def __call__(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes (M, K) and scale: one element, (M, 1) or (M, G)."""
        if self.quantize is None:
            assert self.together is not None
            return launch_plan(self.together, x, given)
        codes, scale = self.codes.like(x), self.scale.like(x)
        self.quantize(x, codes, scale)
        return codes, scale


def tokens(x_MK: Tensor, activation: str, block_k: int, given: Tensor | None = None) -> Tokens:
    """Tokens like x_MK, which is contiguous where ``activation`` is "tensor"."""
    M, K = x_MK.shape
    codes = launch.Room.of((M, K), _E4M3)
    if activation == "tensor":
        plan = tensor_plan((M, K), x_MK.view(-1), _E4M3, given, keeps_inf=True)
        return Tokens(codes, launch.Room.of((), torch.float32), None, plan)
    if activation == "row":
        scale = launch.Room.of((M, 1), torch.float32)
        return Tokens(codes, scale, row_launch(x_MK, _E4M3), None)
    scale = launch.Room.of((M, triton.cdiv(K, block_k)), torch.float32)
    return Tokens(codes, scale, block_launch(x_MK, _E4M3, block_cols=block_k), None)


def ready_rows(x: Tensor, activation: str) -> Tensor:
    """x as the launches of :func:`tokens` take it."""
    x_MK = tiles.rows(x)
    return x_MK.contiguous() if activation == "tensor" else x_MK


def kind_of(activation: str, scale: Tensor) -> str:
    """A block that is as long as a token is a row."""
    return "row" if activation == "block" and scale.shape[1] == 1 else activation


def refusal(x: Tensor, activation: str, block_k: int) -> str | None:
    """Why the launches of :func:`tokens` do not take x, or None."""
    if activation == "block" and block_k > MOST:
        return f"block_k is {block_k}; the Triton kernel takes up to {MOST}"
    return row_refusal(x)


def library_refusal(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> str | None:
    """Why torch._scaled_mm does not take this product, or is not the faster way, or None.

    It has outputs of other dtypes for some kinds of scales on some devices only.
    """
    if not float8.converts_float8(x.device):
        return "the device does not multiply float8"
    M, (N, K) = x.numel() // x.shape[-1], codes.shape
    if M <= FEW:
        return f"x has {M} tokens; torch._scaled_mm is taken for more than {FEW}"
    if x.dtype != torch.bfloat16 or (bias is not None and bias.dtype != torch.bfloat16):
        return "torch._scaled_mm is taken for bfloat16 activations and bias"
    if codes.dtype != _E4M3:
        return f"codes have dtype {codes.dtype}; torch._scaled_mm is taken for {_E4M3}"
    if N == 0 or N % 16 or K % 16:
        return f"codes are {N} x {K}; torch._scaled_mm takes multiples of 16"
    if scale.shape[1] > 1 or 1 < scale.shape[0] < N:
        return "blocks of the weight share scales; torch._scaled_mm is taken for rows and tensors"
    return None


def library_product(
    shape: Sequence[int],
    x_codes: Tensor,
    x_scale: Tensor,
    codes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """The product by torch._scaled_mm.

    It adds up to ``FAST_SUM`` products in the matrix units, with about 14 bits; longer sums are
    promoted to float32 on the way. That was no slower with 8192 x 8192 and costs less exactness
    where sums are long; times of both ways are in docs/decisions/0016. Either rounds the result to
    bfloat16, an error of 0.0017 of its norm; short sums of 4096 make that 0.0021 (one run, random
    codes).
    """
    M, (N, K) = x_codes.shape[0], codes.shape
    if x_scale.numel() != scale.numel() or scale.numel() > 1:
        # It takes scales of two kinds only where the kinds are alike.
        x_scale = x_scale.expand(M, 1).contiguous()
        scale = scale.expand(N, 1).contiguous()
    y = torch._scaled_mm(
        x_codes,
        aligned(codes).t(),  # cuBLAS refuses other addresses
        scale_a=x_scale,
        scale_b=aligned(scale).t(),
        bias=aligned(bias),
        out_dtype=torch.bfloat16,
        use_fast_accum=K <= FAST_SUM,
    )
    return y.view(shape)
