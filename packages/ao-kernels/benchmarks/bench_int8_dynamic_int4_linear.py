"""4-bit linear with int8 activations ("8da4w") against F.linear.

python benchmarks/bench_int8_dynamic_int4_linear.py --shapes 4096x4096 --tokens 1,8,32,128
"""

from __future__ import annotations

from bench_int8_dynamic_intx_linear import run
from measure import Report, arguments


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(group_size=32)
    options = parser.parse_args()
    run(options, Report("int8_dynamic_int4_linear", options.out), 4)


if __name__ == "__main__":
    main()
