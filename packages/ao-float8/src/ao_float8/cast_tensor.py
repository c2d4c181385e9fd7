"""CastTensor: a weight or an activation that travels as float8 codes with one scale.

What FSDP2 gathers of a weight, and sequence parallel of an input, arrives as codes. `Float8Linear`
multiplies them as they are; to autograd it is the tensor of high precision that it stands for, and
gradients are of that dtype.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from ao_core.errors import UnsupportedOpError

from .operands import Codes

__all__ = ["CastTensor", "codes_of"]

aten = torch.ops.aten


class CastTensor(Tensor):
    """tensor ~ codes * scale.

    codes  of the shape of the tensor, float8
    scale  () float32
    dtype  that of the tensor it stands for
    """

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> "CastTensor":
        return Tensor._make_wrapper_subclass(
            cls, codes.shape, strides=codes.stride(), dtype=dtype, device=codes.device
        )

    def __init__(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        self.codes, self.scale = codes, scale

    def dequantize(self) -> Tensor:
        """The tensor in its dtype; no gradient."""
        return (self.codes.float() * self.scale).to(self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"CastTensor(shape={tuple(self.shape)}, dtype={self.dtype}, codes={self.codes.dtype})"
        )

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], self.dtype

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], dtype: Any, outer_size: Any, outer_stride: Any
    ) -> "CastTensor":
        return CastTensor(inner["codes"], inner["scale"], dtype)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = _VIEWS.get(func)
        if made is None:
            raise UnsupportedOpError(
                f"{func} is not defined for a CastTensor, which only Float8Linear reads. Call "
                ".dequantize() first to work on the tensor that it stands for."
            )
        found = made(*args, **(kwargs or {}))
        return return_and_correct_aliasing(func, args, kwargs or {}, found)


def _on_codes(func: Any) -> Callable[..., CastTensor]:
    def run(x: CastTensor, *args: Any, **kwargs: Any) -> CastTensor:
        return CastTensor(func(x.codes, *args, **kwargs), x.scale, x.dtype)

    return run


_VIEWS = {
    func: _on_codes(func)
    for func in (
        aten.detach.default,
        aten.alias.default,
        aten.as_strided.default,
        aten.view.default,
        aten._unsafe_view.default,
    )
}


def codes_of(x: CastTensor, outputs: str, *, keep: bool = False) -> Codes:
    """(..., C) as the matrix (R, C) in the directions of `outputs`, padded to multiples of 16.

    keep: what was made once serves again, as long as x lives; for inputs that layers share.
    """
    if keep and not torch.compiler.is_compiling():
        kept = x.__dict__.setdefault("_kept", {})
        if outputs not in kept:
            kept[outputs] = kept.get("both") or codes_of(x, outputs)
        return kept[outputs]
    codes = x.codes.reshape(-1, x.shape[-1]).view(torch.uint8)
    R, C = codes.shape
    if R % 16 or C % 16:  # the byte 0 is the code 0
        codes = torch.nn.functional.pad(codes, (0, -C % 16, 0, -R % 16))
    nothing = codes.new_empty(0)
    columns = nothing if outputs == "rows" else codes.t().contiguous()
    rows = nothing if outputs == "columns" else codes
    dtype = x.codes.dtype
    return Codes(rows.view(dtype), x.scale, columns.view(dtype), x.scale)
