"""int4 linear with float8 activations on a GPU against F.linear.

python benchmarks/bench_float8_int4_linear.py --shapes 14336x4096 --tokens 1,16,4096
"""

import against_bf16
import torch

if __name__ == "__main__":
    against_bf16.main("float8_int4_linear", __doc__, torch.float8_e4m3fn)
