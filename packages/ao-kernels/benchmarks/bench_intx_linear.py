"""intx weight-only linear, 1 to 8 bits, against F.linear of the same activations.

python benchmarks/bench_intx_linear.py --shapes 4096x4096 --tokens 1 --bits 1,2,3,5,6,7,8
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, check_close, read_layers, shapes
from torch.nn.functional import linear

from ao_core.packing import pack
from ao_kernels.ops import intx_linear


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--bits", default="1,2,3,4,5,6,7,8", help="B,B,...")
    parser.set_defaults(tokens="1,32")
    options = parser.parse_args()
    report, memory = Report("intx_linear", options.out), Memory()
    dtype, g = getattr(torch, options.dtype), options.group_size
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            dense = [torch.randn(N, K).to(dtype) for _ in range(options.layers)]
            for bits in map(int, options.bits.split(",")):
                layers = [_layer(N, K, g, bits) for _ in range(options.layers)]
                n_bytes = layers[0][0].nbytes + layers[0][1].nbytes
                for M in map(int, options.tokens.split(",")):
                    x = torch.randn(M, K).to(dtype)
                    sides = _sides(x, layers, dense, bits, g)
                    sides["read"] = read_layers([layer[:2] for layer in layers])
                    times = alternate(sides, memory, seconds=options.seconds)
                    report.add(f"{N}x{K} b{bits} g{g} M={M}", times, n_bytes)


def _sides(x: torch.Tensor, layers: list, dense: list, bits: int, g: int) -> dict:
    codes, scale, w = layers[0]
    y = intx_linear(x, codes, scale, None, bits, g)
    check_close("ours", y, linear(x.float(), w), 0.01)
    return {
        "ours": [lambda a=a: intx_linear(x, a[0], a[1], None, bits, g) for a in layers],
        str(x.dtype).removeprefix("torch."): [lambda v=v: linear(x, v) for v in dense],
    }


def _layer(N: int, K: int, g: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    scale = (torch.rand(N, K // g) / K**0.5).bfloat16()
    w = (q.float() - 2.0 ** (bits - 1)) * scale.float().repeat_interleave(g, 1)
    return pack(q, bits), scale, w


if __name__ == "__main__":
    main()
