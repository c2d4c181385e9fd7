"""What importing each package costs over `import torch`: medians of fresh interpreters, in turn.

python benchmarks/import_time.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys

import measure

PACKAGES = ("ao_core", "ao_kernels", "ao_quant", "ao_optim", "ao_float8", "ao_hf")
PROBE = """
import time, torch
start = time.perf_counter()
import {name}
print(time.perf_counter() - start)
"""


def milliseconds(name: str) -> float:
    code = PROBE.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    present = [name for name in PACKAGES if importlib.util.find_spec(name)]
    sides = {name: lambda name=name: milliseconds(name) for name in present}
    found = measure.alternate(sides, arguments.rounds)
    rows = [{"package": name, "ms": spread} for name, spread in found.items()]
    print(
        measure.table([{"package": r["package"], "ms over torch": f"{r['ms']:.0f}"} for r in rows])
    )
    print(f"recorded in {measure.record('import_time', rows, rounds=arguments.rounds)}")


if __name__ == "__main__":
    main()
