"""intx_grouped_linear by the compiled kernel of intx_linear."""

from ao_kernels.cpu import experts
from ao_kernels.ops.intx_grouped_linear import intx_grouped_linear
from ao_kernels.ops.intx_linear import intx_linear

experts.register(intx_grouped_linear, intx_linear)
