"""Weight-only linears on a GPU against bf16 F.linear and other libraries, where installed:
microseconds a layer and the share of the limit, which is reading the layer once, or the products at
cuBLAS's rate where those take longer. torch's tinygemm is what torchao's int4 calls.

python benchmarks/bench_weight_only_cuda.py --shapes 4096x4096 --tokens 1,16,256 --formats int4,int8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import peers
import torch
from measure_cuda import Report, alternate, arguments, check_close, count_layers, shapes
from torch import Tensor
from torch.nn.functional import linear

from ao_core.packing import pack
from ao_kernels.ops import int4_linear, int8_linear, intx_linear

Calls = Sequence[Callable[[], object]]


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(shapes="4096x4096,14336x4096,4096x14336", tokens="1,16,64,256,1024,4096")
    parser.add_argument("--formats", default="int4,int8", help="int4,int8,int1,int2,...,int7")
    peers.add_option(parser)
    options = parser.parse_args()
    report = Report("weight_only_linear", options.out)
    with torch.inference_mode():
        for N, K in shapes(options.shapes):
            dense = _layers(N * K * 2, lambda N=N, K=K: torch.randn(N, K, device="cuda").bfloat16())
            for name in options.formats.split(","):
                layer = _FORMATS.get(name, _intx)
                layers = _layers(
                    N * K * int(name[3:]) // 8,
                    lambda: layer(N, K, int(name[3:]), options.group_size),
                )
                others = peers.Peers(name, options.peers, [layer.weight for layer in layers])
                for M in map(int, options.tokens.split(",")):
                    case = f"{name} {N}x{K} M={M}"
                    _case(report, case, M, layers, dense, others, options.seconds)


class _Layer:
    """A quantized weight: its tensors, the op on them, and the weight it stands for."""

    def __init__(
        self, tensors: Sequence[Tensor], call: Callable[[Tensor], Tensor], weight: Tensor
    ) -> None:
        self.tensors, self.call, self.weight = tensors, call, weight.bfloat16()

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def _int4(N: int, K: int, bits: int, g: int) -> _Layer:
    q = torch.randint(0, 16, (N, K), dtype=torch.uint8, device="cuda")
    codes, scale = pack(q, 4), (torch.rand(N, K // g, device="cuda") / K**0.5).bfloat16()
    w = (q.float() - 8) * scale.float().repeat_interleave(g, 1)
    return _Layer((codes, scale), lambda x: int4_linear(x, codes, scale, None, g, None), w)


def _int8(N: int, K: int, bits: int, g: int) -> _Layer:
    codes = torch.randint(-127, 128, (N, K), device="cuda").to(torch.int8)
    scale = torch.rand(N, 1, device="cuda") / (64 * K**0.5)
    w = codes.float() * scale
    return _Layer((codes, scale), lambda x: int8_linear(x, codes, scale, K, None), w)


def _intx(N: int, K: int, bits: int, g: int) -> _Layer:
    q = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8, device="cuda")
    codes, scale = pack(q, bits), (torch.rand(N, K // g, device="cuda") / K**0.5).bfloat16()
    w = (q.float() - 2 ** (bits - 1)) * scale.float().repeat_interleave(g, 1)
    return _Layer((codes, scale), lambda x: intx_linear(x, codes, scale, None, bits, g, None), w)


_FORMATS = {"int4": _int4, "int8": _int8}


def _layers(n_bytes: int, make: Callable[[], object]) -> list:
    return [make() for _ in range(count_layers(n_bytes))]


def _case(
    report: Report,
    case: str,
    M: int,
    layers: list[_Layer],
    dense: list[Tensor],
    others: peers.Peers,
    seconds: float,
) -> None:
    N, K = dense[0].shape
    x = torch.randn(M, K, device="cuda").bfloat16()
    check_close("ours", layers[0].call(x), linear(x.float(), layers[0].weight.float()), 0.01)
    sides: dict[str, Calls] = {
        "ours": [lambda a=a: a.call(x) for a in layers],
        "bf16": [lambda w=w: linear(x, w) for w in dense],
    }
    sides |= others.sides(x)
    measured = alternate(sides, seconds=seconds, product=torch.bfloat16 if M >= 64 else None)
    n_bytes = layers[0].nbytes + x.nbytes + M * N * 2
    report.add(case, measured, n_bytes, 2 * M * N * K)


if __name__ == "__main__":
    main()
