"""int8_dynamic_grouped_linear by the compiled kernel of int8_dynamic_linear."""

from ao_kernels.cpu import experts
from ao_kernels.ops.int8_dynamic_grouped_linear import int8_dynamic_grouped_linear
from ao_kernels.ops.int8_dynamic_linear import int8_dynamic_linear

experts.register(int8_dynamic_grouped_linear, int8_dynamic_linear)
