"""The ops, one module each; below the public functions only plain tensors travel."""

from ao_kernels.ops.int4_linear import int4_linear

__all__ = [
    "int4_linear",
]
