"""Load a model in a process of its own, and print how much its resident memory grew at most.

python peak_memory.py <warm-up folder> <folder>: JSON with bytes

Resident memory counts everything: what was allocated, and the pages of mapped files that are in
use. What Transformers itself needs (imports, the loader, our kernels) is there before the
measurement begins: the same architecture was loaded and quantized in a size that does not count.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from ao_hf import AoConfig
from ao_quant import Int4WeightOnlyConfig


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(warm_up: str, folder: str) -> None:
    config = AoConfig(Int4WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(warm_up, quantization_config=config)
    before = status("VmRSS")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    found = {
        "before": before,
        "peak": status("VmHWM"),
        "after": status("VmRSS"),
        "float": model.quantization_report.bytes_before,
        "quantized": model.quantization_report.bytes_after,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
