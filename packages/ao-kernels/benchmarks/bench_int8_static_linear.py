"""int8 linear with int8 activations of a known scale on a GPU against F.linear.

python benchmarks/bench_int8_static_linear.py --shapes 14336x4096 --tokens 1,16,4096
"""

import against_bf16
import torch

if __name__ == "__main__":
    against_bf16.main("int8_static_linear", __doc__, torch.int8)
