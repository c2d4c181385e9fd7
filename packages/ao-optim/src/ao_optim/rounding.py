"""Stochastic rounding; it lives in `ao_core.rounding`, where the kernels find it, too."""

from ao_core.rounding import random_bits, round_to_bfloat16

__all__ = ["random_bits", "round_to_bfloat16"]
