"""Triton kernels; imported only when arguments are on an accelerator or AO_KERNELS=triton|cuda.

``unavailable`` says why there are none ("" when there are).
"""

KERNELS = (
    "adam_step",
    "float8_dynamic_grouped_linear",
    "float8_dynamic_linear",
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
    "int8_dynamic_linear",
    "int8_grouped_linear",
    "int8_linear",
    "int8_matmul",
    "int8_static_linear",
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
)

try:
    import triton  # noqa: F401
except ImportError as error:
    unavailable = f"triton cannot be imported ({error}); pip install ao-kernels[triton]"
else:
    unavailable = ""

__all__ = ["KERNELS", "unavailable"]
