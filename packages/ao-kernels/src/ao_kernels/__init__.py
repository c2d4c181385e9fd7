"""ao-kernels: every fast op of the toolkit, each with its plain-torch reference.

The ops are functions over plain tensors in :mod:`ao_kernels.ops`.
``AO_KERNELS=reference|cpu|cuda|triton`` in the environment forces one backend; :func:`force` does
it from a program.
"""

from importlib.metadata import PackageNotFoundError, version

from ao_kernels import ops
from ao_kernels.kernel import Kernel
from ao_kernels.registry import OPS, Op, force

try:
    __version__ = version("ao-kernels")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["OPS", "Kernel", "Op", "__version__", "force", "ops"]
