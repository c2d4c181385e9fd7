"""What the tests of the int8_dynamic linears share: magnitudes, and tokens of every kind."""

import torch
from torch import Tensor

from ao_core.numerics import quantize_tokens

_HUGE = torch.finfo(torch.float32).max


def token_magnitude(x: Tensor, mapping: str) -> Tensor:
    """(|q| + |z|) * s for tokens of any rank, float64: what the kernels add up before z is taken
    off."""
    codes, scale, zero = quantize_tokens(x.reshape(-1, x.shape[-1]), mapping=mapping)
    size = codes.double().abs() + (0 if zero is None else zero.double().abs())
    return (size * scale.double()).reshape(x.shape)


def odd_tokens(K: int) -> Tensor:
    """(14, K) float32: zeros, subnormals, one sign, one large element, the largest floats, NaN and
    inf."""
    generator = torch.Generator().manual_seed(K)
    x = torch.randn(14, K, generator=generator)
    x[0] = 0.0
    x[1] *= 1e-40
    x[2] = x[2].abs()
    x[3] = -x[3].abs()
    x[4] = 5.0
    x[5, K // 2] = 1e4
    x[6] *= _HUGE / 8
    x[7] = torch.where(x[7] > 0, _HUGE, -_HUGE)
    x[8, K - 1] = torch.nan
    x[9, 0] = torch.inf
    x[10, K // 3] = -torch.inf
    x[11] *= 1e-30
    x[12] = 1e-45
    return x
