"""float8 linear with float8 activations on a GPU against F.linear and other libraries, where
installed.

python benchmarks/bench_float8_dynamic_linear.py --shapes 14336x4096 --tokens 1,32,4096 --kinds row
"""

from __future__ import annotations

import peers
import torch
from float8_sides import BLOCKS, E4M3, layers
from measure_cuda import Report, alternate, arguments, check_close, shapes
from torch.nn.functional import linear

from ao_kernels.ops import float8_dynamic_linear


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--kinds", default="row,tensor,block", help=",".join(BLOCKS))
    peers.add_option(parser)
    parser.set_defaults(tokens="1,32,128,4096")
    options = parser.parse_args()
    report, dtype = Report("float8_dynamic_linear", options.out), getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            for kind in options.kinds.split(","):
                found = layers(N, K, kind, dtype)
                what = f"float8 dynamic {kind}"
                others = peers.Peers(what, options.peers, [a.dense for a in found])
                for M in map(int, options.tokens.split(",")):
                    x = torch.randn(M, K, device="cuda").to(dtype)
                    sides = {
                        "ours": [
                            lambda a=a, x=x: float8_dynamic_linear(
                                x, a.codes, a.scale, *a.block, kind
                            )
                            for a in found
                        ],
                        options.dtype: [lambda a=a, x=x: linear(x, a.dense) for a in found],
                    }
                    check_close("ours", sides["ours"][0](), linear(x, found[0].dense), 0.05)
                    sides |= others.sides(x)
                    measured = alternate(sides, seconds=options.seconds, product=E4M3)
                    n_bytes = N * K + found[0].scale.nbytes + x.nbytes + M * N * x.itemsize
                    report.add(f"{N}x{K} {kind} M={M}", measured, n_bytes, 2 * M * N * K)


if __name__ == "__main__":
    main()
