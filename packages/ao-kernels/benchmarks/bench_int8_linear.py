"""int8 weight-only linear against F.linear and torch's own _weight_int8pack_mm (one scale a row).

python benchmarks/bench_int8_linear.py --shapes 4096x4096 --tokens 1,8,32,128
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, check_close, read_layers, shapes
from torch.nn.functional import linear

from ao_kernels.ops import int8_linear


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(group_size=0)
    options = parser.parse_args()
    report, memory = Report("int8_linear", options.out), Memory()
    dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            g = options.group_size or K  # one scale a row unless a group size is given
            layers = [_layer(N, K, g) for _ in range(options.layers)]
            dense = [w.to(dtype) for _, _, w in layers]
            n_bytes = layers[0][0].nbytes + layers[0][1].nbytes
            for M in map(int, options.tokens.split(",")):
                x = torch.randn(M, K).to(dtype)
                sides = _sides(x, layers, dense, g)
                sides["read"] = read_layers([layer[:2] for layer in layers])
                times = alternate(sides, memory, seconds=options.seconds)
                report.add(f"{N}x{K} g{g} M={M}", times, n_bytes)


def _sides(x: torch.Tensor, layers: list, dense: list, g: int) -> dict:
    expected = linear(x.float(), layers[0][2])
    check_close("ours", int8_linear(x, *layers[0][:2], g), expected, 0.01)
    sides = {
        "ours": [lambda a=a: int8_linear(x, a[0], a[1], g) for a in layers],
        str(x.dtype).removeprefix("torch."): [lambda v=v: linear(x, v) for v in dense],
    }
    if g >= x.shape[1] and x.dtype == torch.bfloat16:
        rows = [a[1].flatten() for a in layers]
        y = torch._weight_int8pack_mm(x, layers[0][0], rows[0])
        check_close("int8pack", y, expected, 0.02)
        sides["int8pack"] = [
            lambda a=a, s=s: torch._weight_int8pack_mm(x, a[0], s)
            for a, s in zip(layers, rows, strict=True)
        ]
    return sides


def _layer(N: int, K: int, g: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    codes = torch.randint(-127, 128, (N, K), dtype=torch.int8)
    scale = (torch.rand(N, -(-K // g)) / (64 * K**0.5)).bfloat16()
    return codes, scale, codes.float() * scale.float().repeat_interleave(g, 1)[:, :K]


if __name__ == "__main__":
    main()
