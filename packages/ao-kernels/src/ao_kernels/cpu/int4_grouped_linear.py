"""int4_grouped_linear by the compiled kernel of int4_linear."""

from ao_kernels.cpu import experts
from ao_kernels.ops.int4_grouped_linear import int4_grouped_linear
from ao_kernels.ops.int4_linear import int4_linear

experts.register(int4_grouped_linear, int4_linear)
