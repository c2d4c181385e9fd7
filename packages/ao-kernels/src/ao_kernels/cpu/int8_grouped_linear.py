"""int8_grouped_linear by the compiled kernel of int8_linear."""

from ao_kernels.cpu import experts
from ao_kernels.ops.int8_grouped_linear import int8_grouped_linear
from ao_kernels.ops.int8_linear import int8_linear

experts.register(int8_grouped_linear, int8_linear)
