"""int4 weight-only linear against bf16 and float32 F.linear and torch's own packed int4 kernel.

python benchmarks/bench_int4_linear.py --shapes 4096x4096 --tokens 1,8,32,128
"""

from __future__ import annotations

import torch
from measure import Memory, Report, alternate, arguments, check_close, read_layers, shapes
from torch.nn.functional import linear

from ao_core.packing import pack
from ao_kernels.ops import int4_linear


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--zero", action="store_true", help="with zero points")
    parser.add_argument("--float32", action="store_true", help="time float32 F.linear too")
    options = parser.parse_args()
    report, memory = Report("int4_linear", options.out), Memory()
    dtype, g = getattr(torch, options.dtype), options.group_size
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            layers = [_layer(N, K, g, zero=options.zero) for _ in range(options.layers)]
            for M in map(int, options.tokens.split(",")):
                x = torch.randn(M, K).to(dtype)
                sides = _sides(x, layers, g, dtype, options.float32)
                n_bytes = sum(t.nbytes for t in layers[0][:3] if t is not None)
                sides["read"] = read_layers([layer[:3] for layer in layers])
                report.add(
                    f"{N}x{K} g{g} M={M}",
                    alternate(sides, memory, seconds=options.seconds),
                    n_bytes,
                )


def _layer(N: int, K: int, g: int, *, zero: bool) -> tuple:
    q = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    scale = (torch.rand(N, K // g) / K**0.5).bfloat16()
    zeros = torch.randint(4, 12, (N, K // g)).bfloat16() if zero else None
    middle = 8.0 if zeros is None else zeros.float().repeat_interleave(g, 1)
    w = (q.float() - middle) * scale.float().repeat_interleave(g, 1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
    # torch's kernel takes (code - 8) * scale + offset.
    offset = torch.zeros_like(scale) if zeros is None else (8.0 - zeros) * scale
    return pack(q, 4), scale, zeros, packed, torch.stack((scale.T, offset.T), -1).contiguous(), w


def _sides(x: torch.Tensor, layers: list, g: int, dtype: torch.dtype, float32: bool) -> dict:
    codes, scale, zero, packed, scale_offset, w = layers[0]
    expected = linear(x.float(), w)
    sides = {"ours": [lambda a=a: int4_linear(x, a[0], a[1], a[2], g) for a in layers]}
    check_close("ours", int4_linear(x, codes, scale, zero, g), expected, 0.01)
    if dtype == torch.bfloat16:
        sides["int4pack"] = [
            lambda a=a: torch._weight_int4pack_mm_for_cpu(x, a[3], g, a[4]) for a in layers
        ]
        y = torch._weight_int4pack_mm_for_cpu(x, packed, g, scale_offset)
        check_close("int4pack", y, expected, 0.02)
    dense = [a[5].to(dtype) for a in layers]
    sides[str(dtype).removeprefix("torch.")] = [lambda v=v: linear(x, v) for v in dense]
    if float32:
        x32 = x.float()
        sides["float32"] = [lambda a=a: linear(x32, a[5]) for a in layers]
    return sides


if __name__ == "__main__":
    main()
