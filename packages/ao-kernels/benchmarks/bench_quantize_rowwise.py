"""Rows to float8 and int8 on a GPU against torch, eager and compiled, and a copy.

python benchmarks/bench_quantize_rowwise.py --tokens 1,4096 --columns 4096 --codes e4m3,int8
"""

from __future__ import annotations

from quantize_sides import run

from ao_kernels.ops import quantize_rowwise

if __name__ == "__main__":
    run(quantize_rowwise, __doc__, {"": ()})
