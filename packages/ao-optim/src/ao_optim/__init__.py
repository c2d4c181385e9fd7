"""ao-optim: optimizers with low-bit state or state in the CPU's memory, and stochastic rounding of
bfloat16 weights.

    from ao_optim import AdamW8bit
    optimizer = AdamW8bit(model.parameters(), lr=1e-3)

The state is plain tensors; steps run in kernels of ao-kernels where there are some.
"""

from importlib.metadata import PackageNotFoundError, version

from .adam import Adam4bit, Adam8bit, AdamFp8, AdamW, AdamW4bit, AdamW8bit, AdamWFp8
from .foreign_states import from_bitsandbytes_state_dict, from_torchao_state_dict
from .lion import Lion8bit
from .muon import Muon
from .offload import CPUOffloadOptimizer
from .state_offload import StateOffloadOptimizer

try:
    __version__ = version("ao-optim")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Adam4bit",
    "Adam8bit",
    "AdamFp8",
    "AdamW",
    "AdamW4bit",
    "AdamW8bit",
    "AdamWFp8",
    "CPUOffloadOptimizer",
    "Lion8bit",
    "Muon",
    "StateOffloadOptimizer",
    "__version__",
    "from_bitsandbytes_state_dict",
    "from_torchao_state_dict",
]
