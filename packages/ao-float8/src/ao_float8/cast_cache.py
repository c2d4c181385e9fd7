"""Codes that are used again: those of the last input, of the last gradient, and of weights.

N output features, K input features, E experts.

q, k and v read one tensor, gate and up another, and layers whose outputs are added receive one
gradient. Each thread keeps the codes of the last input and of the last gradient: as long as that
tensor lives, is not changed in place, and nothing else was cast since.
"""

import functools
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .operands import Codes, Plan, cast

__all__ = ["GRADIENTS", "INPUTS", "LastCast", "WeightCodes", "count_steps"]

# Without CUDA in torch these are missing, and no tensor asks for them.
_is_capturing = getattr(torch._C, "_cuda_isCurrentStreamCapturing", lambda: False)
_stream_of: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class _Last:
    """What one thread cast last."""

    def __init__(self) -> None:
        self.forget()

    def forget(self, source: Any = None) -> None:
        """Drop the codes; of `source` only, if it is given."""
        if source is None or source is self.source:
            self.source: weakref.ref[Tensor] | None = None
            self.key: tuple[Any, ...] | None = None
            self.mode: weakref.ref[Any] | None = None
            self.codes: Codes | None = None
            self.outputs = ""


class LastCast(threading.local):
    """The codes of one tensor, or of equal views of one, by identity and version, for each thread.

    The tensor is held weakly: its codes go when it does. Inside a dispatch mode (selective
    checkpointing is one) they serve that mode only, so that a block calls the same ops when it is
    recomputed, and codes that were made on a CUDA stream serve that stream only. What was cast
    outside of a CUDA graph does not serve inside, where a replay would not cast it again; and
    inside, leaves are always cast: replays find new values in them.
    """

    def __init__(self) -> None:
        self.last = _Last()

    def cast(
        self,
        x: Tensor,
        x_RC: Tensor,
        dtype: torch.dtype,
        plan: Plan,
        outputs: str,
        *,
        scale: Tensor | None = None,
    ) -> Codes:
        """The codes of x_RC, a view of x with two dimensions; see `operands.cast`."""
        if x.is_inference():  # has no version
            return cast(x_RC, dtype, plan, outputs, scale=scale)
        last = self.last
        capturing, stream = False, 0
        if x.is_cuda:  # another stream does not wait for the codes
            capturing, stream = _is_capturing(), _stream_of(x.get_device())
        mode = _get_current_dispatch_mode()
        leaf = x.grad_fn is None
        key: tuple[Any, ...] = (
            x._version,
            dtype,
            plan.scaling,
            plan.power_of_two,
            capturing,
            stream,
        )
        if x._is_view() and x._base is not None:  # views of one tensor that look alike are one
            key += (x.shape, x.stride(), x.storage_offset(), x.dtype)
            x = x._base
        codes, source = last.codes, last.source
        if (
            codes is not None
            and source is not None
            and source() is x
            and last.key == key
            and last.outputs in (outputs, "both")
            and (None if last.mode is None else last.mode()) is mode
            and not (capturing and leaf)
        ):
            return codes
        last.forget()  # room for the new ones
        codes = cast(x_RC, dtype, plan, outputs, scale=scale)
        last.mode = None if mode is None else weakref.ref(mode)
        last.key, last.codes, last.outputs = key, codes, outputs
        last.source = weakref.ref(x, last.forget)
        return codes

    def forget(self) -> None:
        """Drop what this thread keeps."""
        self.last.forget()


INPUTS = LastCast()
GRADIENTS = LastCast()


class WeightCodes:
    """What is kept of a weight until it changes: both directions of its codes with
    `weight_cache="step"`, the scale alone with "scale".

    A change is seen by the parameter, its address, its version (all in-place operations of torch),
    and by steps of any `torch.optim.Optimizer`, which may write past the version. Writing to
    `parameter.data` outside of an optimizer is not seen: call `drop()`, or train with
    `weight_cache="pass"`. Copies and pickles of a module have an empty one.

    Parts of a parameter, as slices of experts, have codes of their own beside each other.
    """

    steps = 0  # of all optimizers, once `count_steps` was called

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget the codes."""
        self._state: tuple[Any, ...] | None = None
        self._source: weakref.ref[Tensor] | None = None
        self._codes: dict[tuple[Any, ...], Codes] = {}  # by part of the weight

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightCodes":
        return WeightCodes()

    def __reduce__(self) -> Any:
        return WeightCodes, ()

    @property
    def nbytes(self) -> int:
        """Of the codes and scales that are kept."""
        return sum(t.nbytes for codes in self._codes.values() for t in codes)

    def cast(self, w: Tensor, plan: Plan, *, source: Tensor) -> Codes:
        """The codes of w (N, K), or of experts (E, N, K), in both directions.

        source: the tensor whose identity and version say whether w has changed: the one that w is a
        view of, or w itself.
        """
        if _is_uncounted(source):
            return cast(w, plan.weight_dtype, plan, "both", is_weight=True)
        part = self._part(w, plan, source)
        codes = self._codes.get(part)
        if codes is None:
            codes = self._codes[part] = cast(w, plan.weight_dtype, plan, "both", is_weight=True)
        return codes

    def cast_by_scale(self, w_NK: Tensor, plan: Plan, outputs: str) -> Codes:
        """The codes of w; only its scale is kept."""
        if _is_uncounted(w_NK):
            return cast(w_NK, plan.weight_dtype, plan, outputs, is_weight=True)
        part = self._part(w_NK, plan, w_NK)
        found = self._codes.get(part)
        scale = None if found is None else found.row_scale
        codes = cast(w_NK, plan.weight_dtype, plan, outputs, scale=scale, is_weight=True)
        if scale is None:
            nothing = codes.rows.new_empty(0)
            kept = Codes(nothing, codes.row_scale, nothing, codes.row_scale.new_empty(0))
            self._codes[part] = kept
        return codes

    def _part(self, w: Tensor, plan: Plan, source: Tensor) -> tuple[Any, ...]:
        """Under which the codes of w are kept; those that are outdated are gone behind this."""
        count_steps()
        state = (
            source._version,
            w.untyped_storage().data_ptr(),
            WeightCodes.steps,
            _stream_of(w.get_device()) if w.is_cuda else 0,
            torch.is_inference_mode_enabled(),  # codes of which backward cannot save
        )
        if self._state != state or self._source is None or self._source() is not source:
            self.drop()
            self._state, self._source = state, weakref.ref(source)
        return plan if w is source else (w.storage_offset(), w.shape, w.stride(), plan)


def _is_uncounted(source: Tensor) -> bool:
    """Without a version, or in a CUDA graph that is captured: a replay casts again."""
    return bool(source.is_inference() or (source.is_cuda and _is_capturing()))


@functools.cache
def count_steps() -> None:
    """From now on `WeightCodes.steps` counts the steps of all optimizers of this process."""
    register_optimizer_step_post_hook(_count_step)


def _count_step(*_: Any) -> None:
    WeightCodes.steps += 1
