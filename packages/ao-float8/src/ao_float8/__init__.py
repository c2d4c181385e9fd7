"""ao-float8: linear layers that are trained on float8 codes.

from ao_float8 import convert_to_float8_training
report = convert_to_float8_training(model)
"""

from importlib.metadata import PackageNotFoundError, version

from .checkpointing import float8_checkpoint_contexts, keep_float8_casts
from .config import Float8LinearConfig
from .convert import convert_to_float8_training
from .fsdp import precompute_float8_dynamic_scale_for_fsdp
from .linear import Float8Linear
from .recomputation import compile_options

try:
    __version__ = version("ao-float8")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Float8Linear",
    "Float8LinearConfig",
    "__version__",
    "compile_options",
    "convert_to_float8_training",
    "float8_checkpoint_contexts",
    "keep_float8_casts",
    "precompute_float8_dynamic_scale_for_fsdp",
]
