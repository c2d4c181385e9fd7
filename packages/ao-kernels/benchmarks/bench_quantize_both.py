"""Operands of training to float8 in both directions on a GPU, against a copy and torch.

The limit is the copy of what the scales let no one avoid: bfloat16 is read once (1 x 128, 128 x
128, a given scale) or twice (a scale that depends on all of x), and both codes are written. "torch"
casts and transposes as eager torch does; "compiled" is that by Inductor.

"step" cases are all casts of a forward and backward pass of one block of Llama-3-8B with 8192
tokens, one after the other, as ao-float8 makes them: figures are a cast's, on average.

python benchmarks/bench_quantize_both.py --shapes 8192x4096,8192x14336 --tiles 128x64x4,128x128x8
python benchmarks/bench_quantize_both.py --shapes "" --steps "tensor,given,row 2**n,1x128"

To see two versions of the kernels beside each other, run it with the sources of one and then of the
other first in PYTHONPATH: shares are of a copy of the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure_cuda import Report, alternate, arguments, count_layers, shapes
from torch import Tensor

from ao_kernels.ops import (
    quantize_block_both,
    quantize_mx,
    quantize_rowwise_both,
    quantize_tensorwise_both,
)

E4M3 = torch.float8_e4m3fn
# By name: the op, its arguments after x, and how often x must be read.
CASES: dict[str, tuple[Any, tuple[Any, ...], int]] = {
    "tensor": (quantize_tensorwise_both, (E4M3, None, False, "both"), 2),
    "tensor rows": (quantize_tensorwise_both, (E4M3, None, False, "rows"), 2),
    "given": (quantize_tensorwise_both, (E4M3, 0.02, False, "both"), 1),
    "given columns": (quantize_tensorwise_both, (E4M3, 0.02, False, "columns"), 1),
    "row": (quantize_rowwise_both, (E4M3, False, "both"), 2),
    "row 2**n": (quantize_rowwise_both, (E4M3, True, "both"), 2),
    "row rows": (quantize_rowwise_both, (E4M3, False, "rows"), 1),
    "1x128": (quantize_block_both, (E4M3, 1, 128, False, "both"), 1),
    "128x128": (quantize_block_both, (E4M3, 128, 128, False, "both"), 1),
    "mx": (quantize_mx, (E4M3, "both"), 1),
}


# M, N, K of each weight of a block, and for how many of them one input is cast.
_WIDTH, _MLP, _HEADS = 4096, 14336, 1024
_TOKENS = 8192
_WEIGHTS = [(_WIDTH, _WIDTH)] * 2 + [(_HEADS, _WIDTH)] * 2 + [(_MLP, _WIDTH)] * 2
_WEIGHTS += [(_WIDTH, _MLP)]
_INPUTS = [_WIDTH, _WIDTH, _WIDTH, _MLP]  # of q, k, v; of o; of gate, up; of down


def operands(step: str) -> list[tuple[tuple[int, int], Any, tuple[Any, ...], int]]:
    """Shape, op, its arguments after x, and how often x must be read, of every cast of a step.

    A weight (N, K) with N <= M tokens is cast in both directions; else by rows in front of the
    forward product and by columns in front of dgrad, of one scale with the scale that is known.
    "given": as compiled, where the scales are found apart.
    """
    found = []

    def add(rows: int, columns: int, outputs: str = "both", known: bool = False) -> None:
        name = "128x128" if step == "1x128" and (rows, columns) in _WEIGHTS else step
        name = "given" if known and step == "tensor" else name
        op, others, reads = CASES[name]
        reads = 1 if name == "row 2**n" and outputs == "rows" else reads
        found.append(((rows, columns), op, (*others[:-1], outputs), reads))

    for K in _INPUTS:
        add(_TOKENS, K)
    for N, K in _WEIGHTS:
        add(_TOKENS, N)
        if N <= _TOKENS:
            add(N, K)
        else:
            add(N, K, "rows")
            add(N, K, "columns", known=True)
    return found


def measure_step(report: Report, step: str, options: Any) -> None:
    calls: list[Callable[[], object]] = []
    n_bytes = 0
    for shape, op, others, reads in operands(step):
        given = [torch.tensor(o, device="cuda") if isinstance(o, float) else o for o in others]
        x = torch.randn(shape, device="cuda").to(getattr(torch, options.dtype))
        calls.append(partial(op, x, *given))
        n_bytes += reads * x.nbytes + sum(t.nbytes for t in op(x, *given))
    times = alternate({"ours": calls}, seconds=options.seconds, least_rounds=5)
    report.add(f"step {step}, {len(calls)} casts", times, n_bytes // len(calls))
    ms = times.graph["ours"].median * len(calls) / 1e3
    print(
        f"{'':28s} {ms:.3f} ms a block, {n_bytes / times.copy_gbps / 1e6:.3f} counted", flush=True
    )


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(shapes="8192x4096,8192x14336", seconds=0.5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--tiles", default="", help="ROWSxCOLUMNSxWARPS,... to compare")
    parser.add_argument("--compiled", action="store_true", help="Inductor's cast beside ours")
    parser.add_argument("--steps", default="", help="of CASES: tensor, given, row 2**n, 1x128")
    options = parser.parse_args()
    report = Report("quantize_both", options.out)
    with torch.inference_mode():
        for step in filter(None, options.steps.split(",")):
            measure_step(report, step, options)
        for M, K in shapes(options.shapes) if options.shapes else ():
            for name in options.cases.split(","):
                measure(report, f"{M}x{K} {name}", M, K, name, options)


def measure(report: Report, case: str, M: int, K: int, name: str, options: Any) -> None:
    op, others, reads = CASES[name]
    given = [torch.tensor(o, device="cuda") if isinstance(o, float) else o for o in others]
    x = torch.randn(M, K, device="cuda").to(getattr(torch, options.dtype))
    layers = [torch.randn_like(x) for _ in range(count_layers(x.nbytes))]
    small = x[:260, :390]
    for found, wanted in zip(op(small, *given), op.reference(small, *given), strict=True):
        if not torch.equal(as_bytes(found), as_bytes(wanted)):
            case += " WRONG"  # of the reference, which the tests compare with: times show why
            break
    sides: dict[str, list[Callable[[], object]]] = {
        "ours": [partial(op, a, *given) for a in layers]
    }
    for text in filter(None, options.tiles.split(",")):
        plan = variant(x, name, text)
        if plan is not None:
            sides[text] = [partial(plan, a) for a in layers]
    if name in ("tensor", "row"):
        sides["torch"] = [partial(cast, a, name == "row") for a in layers]
        if options.compiled:
            torch.compiler.reset()
            compiled = torch.compile(cast, dynamic=False)
            sides["compiled"] = [partial(compiled, a, name == "row") for a in layers]
    n_bytes = reads * x.nbytes + sum(t.nbytes for t in op(x, *given))
    report.add(case, alternate(sides, seconds=options.seconds, least_rounds=5), n_bytes)


def as_bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


def variant(x: Tensor, name: str, text: str) -> Any:
    """The launches of another tile; None where the kind has no choice."""
    from ao_kernels.triton import directions

    kinds = {"tensor": directions.TENSOR, "row": directions.VECTORS}
    kinds |= {"1x128": directions.ROW_BLOCKS, "128x128": directions.SQUARE_BLOCKS}
    kind = kinds.get(name)
    rows, columns, warps = map(int, text.split("x"))
    blocks = kind in (directions.ROW_BLOCKS, directions.SQUARE_BLOCKS)
    if kind is None or (blocks and (rows, columns) != (128, 128)):
        return None
    tile = directions.Tile(rows, columns, warps)
    return directions.plan(x, kind, E4M3, power_of_two=False, outputs="both", tile=tile)


def cast(x: Tensor, row: bool) -> tuple[Tensor, ...]:
    """What a training step in plain torch does: a cast by rows, and one of the transposed."""
    if not row:
        scale = (x.abs().amax().float() / 448).clamp(min=1e-30)
        codes = (x.float() / scale).clamp(-448, 448).to(E4M3)
        return codes, codes.t().contiguous(), scale
    found: list[Tensor] = []
    for way in (x, x.t()):
        scale = (way.abs().amax(1, keepdim=True).float() / 448).clamp(min=1e-30)
        codes = (way.float() / scale).clamp(-448, 448).to(E4M3)
        found += [codes.contiguous(), scale]
    return tuple(found)


if __name__ == "__main__":
    main()
