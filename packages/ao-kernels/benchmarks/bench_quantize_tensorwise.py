"""Whole tensors to float8 and int8, with their own and with a given scale, on a GPU against torch,
eager and compiled, and a copy.

python benchmarks/bench_quantize_tensorwise.py --tokens 1,4096 --columns 4096 --codes e4m3,int8
"""

from __future__ import annotations

from quantize_sides import run

from ao_kernels.ops import quantize_tensorwise

if __name__ == "__main__":
    run(quantize_tensorwise, __doc__, {"": (None,), "given": (0.02,)})
