"""Times variants of the tile kernel (temporary).

python benchmarks/sweep_weight_only.py LIBRARY.so [--shapes ...] [--tokens ...]
"""

from __future__ import annotations

import argparse
import ctypes
import time
from functools import partial

import torch
from measure_cuda import count_layers, graph_times
from report import shapes
from torch.nn.functional import linear
from tuned_formats import FORMATS

MULTIPROCESSORS = 132


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336,6144x4096")
    parser.add_argument("--tokens", default="8,16,32,64,128,256,512,1024")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=16, help="fastest variants to print")
    options = parser.parse_args()
    library = ctypes.CDLL(options.library)
    variants = []
    library.sweep_info.restype = ctypes.c_char_p
    for v in range(library.sweep_count()):
        info = (ctypes.c_int * 6)()
        name = library.sweep_info(v, info).decode()
        variants.append((v, name, *info))
    begin = time.perf_counter()
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name} {properties.multi_processor_count} torch {torch.__version__}")
    formats = {4: "int4_linear", 0: "int8_linear", -1: "float8_linear"}
    for bits in [int(b) for b in options.bits.split(",")]:
        if not any(each[2] == bits for each in variants):
            continue
        make = next(f for f in FORMATS if f.op == formats[bits] and f.kind in ("row", "group 128"))
        for N, K in shapes(options.shapes):
            weights = [
                torch.randn(N, K, device="cuda", dtype=torch.bfloat16) / K**0.5
                for _ in range(count_layers(2 * N * K))
            ]
            first = make.make(N, K, "cuda")
            layers = [first] + [
                make.make(N, K, "cuda") for _ in range(count_layers(first.nbytes) - 1)
            ]
            dense = first.dense()
            for M in [int(m) for m in options.tokens.split(",")]:
                case(library, variants, bits, layers, weights, dense, M, options)
            del weights, layers, first, dense
    print(f"{time.perf_counter() - begin:.0f} s")


def chosen(variants, bits, M, N, K):
    for v, name, of, rows, tokens, slots, permuted, diagnostic in variants:
        if of != bits or (diagnostic and not (tokens == M and N == 14336)):
            continue
        most = max(16, 1 << (M - 1).bit_length())
        if tokens > most or tokens * (2 if name[0] == "m" or M > 128 else 1) < min(M, 256):
            continue
        tiles, plain = -(-M // tokens) * -(-N // rows), N == 14336 and tokens == 16 and name[0] == "w"
        for split in (1, 2, 4, 8):
            units, blocks = tiles * split, K // 128
            if split > 1 and (units > 4.2 * slots * MULTIPROCESSORS or blocks < 4 * split):
                continue
            if units < 0.4 * MULTIPROCESSORS or (diagnostic and split > 2):
                continue
            yield f"{name} /{split}", v, split, permuted, bool(diagnostic) or plain


def case(library, variants, bits, layers, weights, dense, M, options) -> None:
    N, K = dense.shape
    x = torch.randn(M, K, device="cuda", dtype=torch.bfloat16)
    expected = x.float() @ dense.float().T
    norm = expected.norm()
    # position 16 s + 8 i + 2 t + e, s = 2 j + h, of 128 input features: 32 t + 8 j + 2 h + i + 4 e
    s, i, t, e = torch.meshgrid(*(torch.arange(n) for n in (8, 2, 4, 2)), indexing="ij")
    order = (32 * t + 8 * (s // 2) + 2 * (s % 2) + i + 4 * e).reshape(-1).cuda()
    permuted_x = x.view(M, -1, 128)[:, :, order].reshape(M, K).contiguous()

    def call(v, split, permuted, layer):
        _, codes, scale = layer.args(x)[:3]
        y = torch.empty(M, N, device="cuda", dtype=torch.bfloat16)
        error = library.sweep_launch(
            v, split, *(ctypes.c_void_p(t.data_ptr()) for t in (permuted_x if permuted else x, codes, scale, y)), M, N, K,
            scale.shape[1], MULTIPROCESSORS, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip
        if error:
            raise RuntimeError(f"error {error}")
        return y

    sides, bad = {}, []
    size = x.nbytes + 2 * M * N
    count = count_layers(layers[0].nbytes + size)
    for name, v, split, permuted, unchecked in chosen(variants, bits, M, N, K):
        try:
            y = call(v, split, permuted, layers[0])
            torch.cuda.synchronize()
        except Exception as error:
            bad.append(f"{name}: {error}")
            if "error" in str(error).lower() and "CUDA" in str(error):
                raise
            continue
        wrong = ((y.float() - expected).norm() / norm).item()
        same = torch.equal(y, call(v, split, permuted, layers[0]))
        if not unchecked and (not wrong < 0.01 or not same):
            bad.append(f"{name}: error {wrong:.3g} same {same}")
        sides[name] = [partial(call, v, split, permuted, layer) for layer in layers[:count]]
    dense_count = count_layers(weights[0].nbytes + size)
    sides["bf16"] = [partial(linear, x, w) for w in weights[:dense_count]]
    times = {
        name: t.median
        for name, t in graph_times(
            sides, seconds=options.seconds, least_rounds=7, warm_seconds=0.05
        ).items()
    }
    bf16 = times.pop("bf16")
    special = sorted((n, us) for n, us in times.items() if n[1] == ":" or "w2x64 t16" in n)
    best = {}
    for name, us in sorted(times.items(), key=lambda each: each[1]):
        best.setdefault(name.rpartition("/")[0], (name, us))
    order = [each for each in best.values() if each not in special][: options.rows] + special
    print(
        f"bits {bits} {N}x{K} M={M} bf16 {bf16:.1f} | "
        + ", ".join(f"{name} {us:.2f}" for name, us in order)
        + "".join(f" | BAD {each}" for each in bad),
        flush=True,
    )


if __name__ == "__main__":
    main()
