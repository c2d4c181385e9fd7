"""The step of Transformers' loader that quantizes one weight, and gives back what it came from.

Transformers maps checkpoint files and reads a tensor when its turn comes. Converting it touches all
of its pages, and they would stay resident until the last tensor is loaded: the whole float model.
So the pages are handed back as soon as a tensor has been converted.
"""

import ctypes
import mmap
import os
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps

from ao_core.match import Target
from ao_core.tensor import QTensor
from ao_core.transform import get_handler, is_finite

from .selection import is_transposed

__all__ = ["MappedFiles", "QuantizeWeights", "quantized"]

PAGE = mmap.PAGESIZE
PRESENT, FROM_FILE = 1 << 63, 1 << 61  # flags of an entry of /proc/self/pagemap


class QuantizeWeights(ConversionOps):
    """Converts the chosen weights among those that a step of the loader yields.

    An exception here would reach the user as a traceback inside a log. So a weight that cannot be
    converted stays in float, and `errors` says why: the quantizer raises them together when the
    loading has ended.
    """

    def __init__(self, chosen: dict[str, Target], files: Sequence[str]) -> None:
        self.chosen = chosen
        self.errors: dict[str, str] = {}
        self.files = files
        self.mapped: MappedFiles | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizeWeights":
        return self

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Full parameter name -> tensor, or a list of one; what is not chosen passes through."""
        if self.mapped is None:  # only now are the files mapped
            self.mapped = MappedFiles(self.files)
        result: dict[str, Any] = {}
        for name in list(input_dict):
            value = input_dict.pop(name)
            w = value[0] if isinstance(value, list) else value
            target = self.chosen.get(name)
            result[name] = w if target is None else self._converted(w, target)
            if result[name] is not w:
                self.mapped.release(w)
            del value, w
        return result

    def _converted(self, w: Tensor, target: Target) -> Tensor:
        expected = tuple(target.parameter.shape)
        if tuple(w.shape) != expected:
            found = f"has shape {tuple(w.shape)} in the checkpoint, {expected} in the model"
            self.errors[target.fqn] = found
            return w
        try:
            return quantized(w, target)
        except (TypeError, ValueError) as error:
            self.errors[target.fqn] = str(error)
            return w


@torch.no_grad()
def quantized(w: Tensor, target: Target) -> nn.Parameter:
    """The parameter that replaces `w` at a target. ValueError when it has NaN or inf."""
    if isinstance(w, QTensor):
        raise ValueError(f"is quantized already ({type(w).__name__})")
    w = w.detach()
    if not is_finite(w):
        raise ValueError("the weight contains NaN or inf")
    config, transposed = target.config, is_transposed(target.module, w)
    assert config is not None
    q = get_handler(config).convert(w.mT if transposed else w, config)
    return nn.Parameter(q.mT if transposed else q, requires_grad=False)


class MappedFiles:
    """Where in memory some files are mapped now. It knows on Linux, and is empty elsewhere."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.ranges: list[tuple[int, int]] = []
        if not sys.platform.startswith("linux"):
            return
        known = {os.path.realpath(path) for path in paths}
        with open("/proc/self/maps") as maps:
            for line in maps:
                place, *_, path = line.rstrip("\n").split(maxsplit=5)
                if path in known:
                    start, stop = (int(end, 16) for end in place.split("-"))
                    self.ranges.append((start, stop))
        self.madvise = ctypes.CDLL(None).madvise
        self.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def release(self, t: Tensor) -> None:
        """Drop the pages that hold nothing but `t`, if they show one of the files.

        The values remain what they are: whoever reads them again gets them from the file.
        """
        if t.device.type != "cpu" or not t.is_contiguous():
            return
        start, stop = t.data_ptr(), t.data_ptr() + t.nbytes
        if not any(low <= start and stop <= high for low, high in self.ranges):
            return
        start, stop = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if start < stop and _unwritten(start, stop):
            self.madvise(start, stop - start, mmap.MADV_DONTNEED)


def _unwritten(start: int, stop: int) -> bool:
    """Whether all pages in memory from `start` to `stop` are a file's: one that was written to is
    a copy, and dropping it would lose what was written."""
    try:
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(start // PAGE * 8)
            entries = array("Q", pagemap.read((stop - start) // PAGE * 8))
    except OSError:  # not shown to this process
        return False
    return all(not entry & PRESENT or entry & FROM_FILE for entry in entries)
