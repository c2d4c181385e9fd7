"""The ops, one module each; below the public functions only plain tensors travel."""

from ao_kernels.ops.adam_step import adam_step
from ao_kernels.ops.float8_dynamic_grouped_linear import float8_dynamic_grouped_linear
from ao_kernels.ops.float8_dynamic_linear import float8_dynamic_linear
from ao_kernels.ops.float8_embedding import float8_embedding
from ao_kernels.ops.float8_grouped_linear import float8_grouped_linear
from ao_kernels.ops.float8_grouped_matmul import float8_grouped_matmul
from ao_kernels.ops.float8_grouped_wgrad import float8_grouped_wgrad
from ao_kernels.ops.float8_int4_grouped_linear import float8_int4_grouped_linear
from ao_kernels.ops.float8_int4_linear import float8_int4_linear
from ao_kernels.ops.float8_linear import float8_linear
from ao_kernels.ops.float8_matmul import float8_matmul
from ao_kernels.ops.float8_static_linear import float8_static_linear
from ao_kernels.ops.int4_grouped_linear import int4_grouped_linear
from ao_kernels.ops.int4_linear import int4_linear
from ao_kernels.ops.int8_dynamic_grouped_linear import int8_dynamic_grouped_linear
from ao_kernels.ops.int8_dynamic_int4_linear import int8_dynamic_int4_linear
from ao_kernels.ops.int8_dynamic_intx_linear import int8_dynamic_intx_linear
from ao_kernels.ops.int8_dynamic_linear import int8_dynamic_linear
from ao_kernels.ops.int8_embedding import int8_embedding
from ao_kernels.ops.int8_grouped_linear import int8_grouped_linear
from ao_kernels.ops.int8_linear import int8_linear
from ao_kernels.ops.int8_matmul import int8_matmul
from ao_kernels.ops.int8_static_linear import int8_static_linear
from ao_kernels.ops.intx_embedding import intx_embedding
from ao_kernels.ops.intx_grouped_linear import intx_grouped_linear
from ao_kernels.ops.intx_linear import intx_linear
from ao_kernels.ops.lion_step import lion_step
from ao_kernels.ops.quantize_block import quantize_block
from ao_kernels.ops.quantize_block_both import quantize_block_both
from ao_kernels.ops.quantize_grouped_both import quantize_grouped_both
from ao_kernels.ops.quantize_mx import quantize_mx
from ao_kernels.ops.quantize_rowwise import quantize_rowwise
from ao_kernels.ops.quantize_rowwise_both import quantize_rowwise_both
from ao_kernels.ops.quantize_tensorwise import quantize_tensorwise
from ao_kernels.ops.quantize_tensorwise_both import quantize_tensorwise_both

__all__ = [
    "adam_step",
    "float8_dynamic_grouped_linear",
    "float8_dynamic_linear",
    "float8_embedding",
    "float8_grouped_linear",
    "float8_grouped_matmul",
    "float8_grouped_wgrad",
    "float8_int4_grouped_linear",
    "float8_int4_linear",
    "float8_linear",
    "float8_matmul",
    "float8_static_linear",
    "int4_grouped_linear",
    "int4_linear",
    "int8_dynamic_grouped_linear",
    "int8_dynamic_int4_linear",
    "int8_dynamic_intx_linear",
    "int8_dynamic_linear",
    "int8_embedding",
    "int8_grouped_linear",
    "int8_linear",
    "int8_matmul",
    "int8_static_linear",
    "intx_embedding",
    "intx_grouped_linear",
    "intx_linear",
    "lion_step",
    "quantize_block",
    "quantize_block_both",
    "quantize_grouped_both",
    "quantize_mx",
    "quantize_rowwise",
    "quantize_rowwise_both",
    "quantize_tensorwise",
    "quantize_tensorwise_both",
]
