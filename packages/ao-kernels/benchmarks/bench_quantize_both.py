"""Operands of training to float8 in both directions on a GPU, against a copy and torch.

The limit is the copy of what the scales let no one avoid: bfloat16 is read once (1 x 128, 128 x
128, a given scale) or twice (a scale that depends on all of x), and both codes are written. "torch"
casts and transposes as eager torch does; "compiled" is that by Inductor.

python benchmarks/bench_quantize_both.py --shapes 8192x4096,8192x14336 --tiles 128x64x4,128x128x8
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
    "row": (quantize_rowwise_both, (E4M3, False, "both"), 2),
    "row 2**n": (quantize_rowwise_both, (E4M3, True, "both"), 2),
    "row rows": (quantize_rowwise_both, (E4M3, False, "rows"), 1),
    "1x128": (quantize_block_both, (E4M3, 1, 128, False, "both"), 1),
    "128x128": (quantize_block_both, (E4M3, 128, 128, False, "both"), 1),
    "mx": (quantize_mx, (E4M3, "both"), 1),
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(shapes="8192x4096,8192x14336", seconds=0.5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--tiles", default="", help="ROWSxCOLUMNSxWARPS,... to compare")
    parser.add_argument("--compiled", action="store_true", help="Inductor's cast beside ours")
    options = parser.parse_args()
    report = Report("quantize_both", options.out)
    with torch.inference_mode():
        for M, K in shapes(options.shapes):
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
