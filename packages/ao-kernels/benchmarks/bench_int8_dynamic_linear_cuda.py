"""int8 linear with int8 activations on a GPU against F.linear and other libraries, where installed.

python benchmarks/bench_int8_dynamic_linear_cuda.py --shapes 14336x4096 --tokens 1,32,4096
"""

from __future__ import annotations

import peers
import torch
from measure_cuda import Report, alternate, arguments, check_close, count_layers, shapes
from torch import Tensor
from torch.nn.functional import linear

from ao_kernels.ops import int8_dynamic_linear


def main() -> None:
    parser = arguments(__doc__ or "")
    peers.add_option(parser)
    parser.set_defaults(tokens="1,16,32,128,512,4096")
    options = parser.parse_args()
    report, dtype = Report("int8_dynamic_linear", options.out), getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            layers = [_layer(N, K) for _ in range(count_layers(N * K))]
            dense = [(codes.float() * scale).to(dtype) for codes, scale in layers]
            others = peers.Peers("int8 dynamic", options.peers, dense)
            for M in map(int, options.tokens.split(",")):
                x = torch.randn(M, K, device="cuda").to(dtype)
                y = int8_dynamic_linear(x, *layers[0])
                check_close("ours", y, linear(x.float(), dense[0].float()), 0.03)
                sides = {
                    "ours": [lambda a=a, x=x: int8_dynamic_linear(x, *a) for a in layers],
                    options.dtype: [lambda w=w, x=x: linear(x, w) for w in dense],
                    **others.sides(x),
                }
                measured = alternate(sides, seconds=options.seconds, product=torch.int8)
                n_bytes = N * K + layers[0][1].nbytes + x.nbytes + M * N * x.itemsize
                report.add(f"{N}x{K} M={M}", measured, n_bytes, 2 * M * N * K)


def _layer(N: int, K: int) -> tuple[Tensor, Tensor]:
    codes = torch.randint(-127, 128, (N, K), device="cuda").to(torch.int8)
    return codes, torch.rand(N, 1, device="cuda") / (64 * K**0.5)


if __name__ == "__main__":
    main()
