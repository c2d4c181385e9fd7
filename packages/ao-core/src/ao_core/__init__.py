"""ao-core: what every package of the toolkit stands on. It quantizes nothing by itself."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ao-core")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
