"""What the benchmarks of the quantize ops share: they have no CPU kernel, so they run on a GPU.

Ours beside the reference, as eager torch runs it ("torch") and as Inductor compiles it
("compiled"). The limit is a copy of what must be read and written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from measure_cuda import Report, alternate, count_layers
from report import arguments

CODE_DTYPES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}


def run(op: Any, description: str | None, variants: dict[str, Sequence[Any]]) -> None:
    """``variants``: by name, the arguments of the op after x and the dtype of codes."""
    parser = arguments(description or "")
    parser.add_argument("--codes", default="e4m3,int8", help="e4m3,e5m2,int8")
    parser.set_defaults(tokens="1,16,256,4096,16384")
    parser.add_argument("--columns", default="4096,14336", help="K,K,...")
    options = parser.parse_args()
    report = Report(op.name, options.out)
    x_dtype = getattr(torch, options.dtype)
    with torch.inference_mode():
        for K in map(int, options.columns.split(",")):
            for M in map(int, options.tokens.split(",")):
                for name in options.codes.split(","):
                    for variant, others in variants.items():
                        case = f"{M}x{K} {name} {variant}".strip()
                        x = torch.randn(M, K, device="cuda").to(x_dtype)
                        _case(report, case, op, x, CODE_DTYPES[name], others, options.seconds)


def _case(
    report: Report,
    case: str,
    op: Any,
    x: torch.Tensor,
    dtype: torch.dtype,
    others: Sequence[Any],
    seconds: float,
) -> None:
    given = [torch.tensor(o, device="cuda") if isinstance(o, float) else o for o in others]
    n_layers = count_layers(x.nbytes)
    # A graph of more is slow to capture; activations of few tokens come from a cache in a model.
    layers = [torch.randn_like(x) for _ in range(min(n_layers, 200))]
    torch.compiler.reset()  # else the ninth shape would run uncompiled
    compiled = torch.compile(op.reference, dynamic=False)
    expected, wanted = op.reference(x, dtype, *given)
    codes, scale = op(x, dtype, *given)
    if not torch.equal(codes.view(torch.uint8), expected.view(torch.uint8)):
        raise AssertionError(f"{case}: codes differ from those of the reference")
    if not torch.equal(scale, wanted):
        raise AssertionError(f"{case}: scales differ from those of the reference")
    sides = {
        "ours": [lambda a=a: op(a, dtype, *given) for a in layers],
        "torch": [lambda a=a: op.reference(a, dtype, *given) for a in layers],
        "compiled": [lambda a=a: compiled(a, dtype, *given) for a in layers],
    }
    n_bytes = x.nbytes + codes.nbytes + scale.nbytes
    report.add(case, alternate(sides, seconds=seconds), n_bytes)
