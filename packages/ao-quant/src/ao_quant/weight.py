"""ScaledWeight: what all weights of codes and scales have in common, as tensors and as operands.

Letters: N output features, K input features, G groups, E experts. The weight is (N, K); experts are
(E, N, K); a 1x1 convolution is (N, K, 1, 1), with as many trailing ones as it has spatial
dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ao_core import numerics
from ao_core.config import AOBaseConfig
from ao_core.errors import ConfigError, UnsupportedOpError
from ao_core.granularity import Granularity, PerAxis, PerBlock, PerGroup
from ao_core.tensor import Dim, QTensor
from ao_kernels.choice import Asked

from .experts import grouped_product

__all__ = ["ScaledWeight", "check_granularity", "group_size_of", "refuse", "static_scale"]

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHUNK = 1 << 18  # weights converted at a time: 1 MB of float32 stays in the L2 cache


class ScaledWeight(QTensor):
    """Codes with a scale for each `group_size` consecutive input features.

    codes       (..., N, bytes of K codes)           scale   (..., N or 1, G)
    group_size  input features that share a scale; at least K when a row has one scale
    activation  None (weight-only), or how activations are quantized on every call: one of the
                class's `activations`
    trailing    trailing dimensions of size 1 (convolutions)

    A class whose activations may be "<dtype>_static" has the optional field `x_scale`, of one
    element: the scale of all activations.
    """

    codes: Tensor
    scale: Tensor
    group_size: int
    activation: str | None
    trailing: int

    activations: ClassVar[tuple[str | None, ...]]

    def code_rule(self) -> tuple[int, int]:
        """(logical, stored): how the codes follow the input features."""
        raise NotImplementedError

    def scale_rule(self) -> tuple[Dim, ...]:
        """How scales follow the dimensions before the input features."""
        shared = zip(self.scale.shape, self.codes.shape, strict=True)
        rows: list[Dim] = [None if ours < codes else 1 for ours, codes in shared]
        return tuple(rows[: self.codes.dim() - 1 - self.trailing])

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) -> (..., N) with the kernel of this format; self is a plain (N, K) weight."""
        raise NotImplementedError

    def grouped_linear(self, x: Tensor, offsets: Tensor) -> Tensor | None:
        """x (T, K), sorted by expert -> (T, N) with the grouped op of this format, or None without
        one. self has the fields of (E, N, K), transposed or not; offsets (E,) int32."""
        return None

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of a plain (N, K) weight: (...,) -> (..., K) in the weight's dtype."""
        raise NotImplementedError

    def check(self) -> None:
        self.check_groups()
        if self.activation not in self.activations:
            raise ValueError(f"activation is {self.activation!r}, not one of {self.activations}")
        if str(self.activation).endswith("_static") != ("x_scale" in self.tensors()):
            raise ValueError(f"x_scale goes with static activations, got {self.activation!r}")
        if self.trailing not in range(self.codes.dim() - 1):
            raise ValueError(f"{self.trailing!r} trailing dimensions do not fit the codes")
        super().check()

    def check_groups(self) -> None:
        """ValueError unless blocks have positive sizes."""
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size!r}, not a positive integer")

    def field_layout(self) -> dict[str, tuple[Dim, ...]]:
        ones: tuple[Dim, ...] = (1,) * self.trailing
        lead = (1,) * (self.codes.dim() - 1 - self.trailing)
        scale = (*self.scale_rule(), self.group_size, *ones)
        dims: dict[str, tuple[Dim, ...]] = dict.fromkeys(self.tensors(), scale)
        dims["codes"] = (*lead, self.code_rule(), *ones)
        if "x_scale" in dims:
            dims["x_scale"] = (None,) * self.codes.dim()
        return dims

    def kernel_for(self, tokens: int, bias: Tensor | None = None) -> tuple[str, str] | None:
        w = self.flat()
        if w.transposed or w.dim() not in (2, 3) or not w.numel():
            return None
        one = w if w.dim() == 2 else w[0]
        assert isinstance(one, ScaledWeight)
        x = torch.empty(tokens, w.shape[-1], dtype=w.dtype, device=w.device)
        with torch.no_grad(), Asked() as asked:
            one.linear(x, bias if w.dim() == 2 else None)
        (choice,) = asked.choices
        return choice.kernel, choice.warning

    def flat(self) -> "ScaledWeight":
        """The same weight without the trailing dimensions of a convolution."""
        if not self.trailing:
            return self
        end = self.codes.dim() - self.trailing
        shape = torch.Size(tuple(self.shape)[:end])
        return self.map(lambda t: t.reshape(t.shape[:end]), shape=shape, trailing=0)  # type: ignore[return-value]


# --- conversion


def check_dtypes(q: QTensor, allowed: dict[str, tuple[torch.dtype, ...]]) -> None:
    """ValueError unless each field that is present has one of its dtypes."""
    for name, t in q.tensors().items():
        if t.dtype not in allowed[name]:
            raise ValueError(
                f"{name} has dtype {t.dtype}, not {' or '.join(map(str, allowed[name]))}"
            )


def chunked_rows(w: Tensor) -> Sequence[Tensor]:
    """(..., K) -> pieces of its (R, K) rows, each small enough to stay in the cache."""
    return w.reshape(-1, w.shape[-1]).split(rows_at_a_time(w))


def rows_at_a_time(w: Tensor) -> int:
    """Rows of w that are converted together: many on a GPU, which waits for launches otherwise."""
    chunk = CHUNK if w.device.type == "cpu" else numerics.DEVICE_CHUNK
    return max(1, chunk // max(1, w.shape[-1]))


def joined(parts: list[Tensor], like: Tensor, trailing: int) -> Tensor:
    """Row pieces (R, n) -> (..., N, n) with the leading dimensions of `like` and `trailing`
    ones."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(*like.shape[:-1], whole.shape[-1], *(1,) * trailing)


def without_trailing(w: Tensor) -> tuple[Tensor, int]:
    """(N, K, 1, 1) -> (N, K), 2. A weight is a convolution's when it has three or more dimensions
    that end in ones."""
    trailing = 0
    while w.dim() > 2 and w.shape[-1] == 1 and (trailing or w.dim() > 3 or w.shape[-2] > 1):
        w, trailing = w[..., 0], trailing + 1
    return w, trailing


def check_granularity(
    config: str, granularity: Granularity, allowed: tuple[type[Granularity], ...]
) -> None:
    """ConfigError unless the granularity is one that the config can apply."""
    good = isinstance(granularity, allowed) and not (
        isinstance(granularity, PerAxis) and granularity.axis != 0
    )
    if not good:
        names = ", ".join("PerAxis(0)" if kind is PerAxis else kind.__name__ for kind in allowed)
        raise ConfigError(f"{config}: granularity is one of {names}; got {granularity!r}")
    if isinstance(granularity, PerGroup) and granularity.group_size % 8:
        raise ConfigError(f"{config}: group_size is a multiple of 8, got {granularity.group_size}")
    if isinstance(granularity, PerBlock) and (
        len(granularity.block_size) != 2 or granularity.block_size[1] % 8
    ):
        raise ConfigError(
            f"{config}: block_size is (rows, a multiple of 8), got {granularity.block_size}"
        )


def group_size_of(granularity: Granularity, length: int) -> int:
    """Input features that share a scale in a row of `length`."""
    return granularity.group_size if isinstance(granularity, PerGroup) else length


def static_scale(w: Tensor, activation_range: float, high: float) -> Tensor:
    """The scale that maps activations up to `activation_range` to codes up to `high`; as many
    dimensions as w, one element."""
    smallest = torch.finfo(torch.float32).tiny
    return torch.full(
        (1,) * w.dim(),
        max(activation_range / high, smallest),
        dtype=torch.float32,
        device=w.device,
    )


def refuse(module: nn.Module, name: str, w: Tensor, config: AOBaseConfig) -> str | None:
    """Why a parameter cannot become a weight of codes and scales, or None."""
    if w.dtype not in WEIGHT_DTYPES:
        return (
            f"has dtype {w.dtype}; float32, bfloat16, float16 and float64 weights can be quantized"
        )
    if w.dim() < 2:
        return f"has shape {tuple(w.shape)}; a weight has at least the dimensions (N, K)"
    if isinstance(module, nn.RNNBase):
        return f"belongs to a {type(module).__name__}, whose kernels take float weights only"
    if isinstance(module, nn.modules.conv._ConvNd) and name == "weight":
        if module.transposed or module.groups != 1 or any(k != 1 for k in module.kernel_size):
            size = "x".join(map(str, module.kernel_size))
            return (
                f"is a {type(module).__name__} with a {size} kernel and {module.groups} groups; "
                "only 1x1 convolutions with groups=1 are linear"
            )
    elif w.dim() > 3:
        return f"has shape {tuple(w.shape)}; weights are (N, K), or (E, N, K) for experts"
    return None


# --- as an operand

aten = torch.ops.aten


def _needs(w: Any, what: str) -> None:
    if not isinstance(w, ScaledWeight):
        raise UnsupportedOpError(
            f"{what} with a quantized tensor on the other side is not defined; "
            "call .dequantize() on it first"
        )


@ScaledWeight.implements(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    if isinstance(weight, ScaledWeight) and not weight.transposed:
        return weight.linear(input, bias)
    return _untransposed_linear(input, weight, bias)


def _untransposed_linear(x: Any, w: Any, bias: Any) -> Tensor:
    _needs(w, "linear")
    if bias is not None and isinstance(bias, QTensor):
        raise UnsupportedOpError("a quantized bias is not defined; leave biases in float")
    # w is the transposed view of an (N, K) weight: the product that gradients need.
    y = x @ w.dequantize().mT
    return y if bias is None else y + bias


@ScaledWeight.implements(aten.mm.default)
def _mm(a: Any, b: Any) -> Tensor:
    _needs(b, "a product")
    if b.transposed:
        return b.rebuild(shape=torch.Size((b.shape[1], b.shape[0])), transposed=False).linear(
            a, None
        )
    return a @ b.dequantize()


@ScaledWeight.implements(aten.addmm.default)
def _addmm(bias: Tensor, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Tensor:
    y = _mm(a, b)
    return (y if alpha == 1 else y * alpha) + (bias if beta == 1 else bias * beta)


@ScaledWeight.implements(aten.linear.default)
def _aten_linear(x: Tensor, w: Any, bias: Tensor | None = None) -> Tensor:
    return _linear(x, w, bias)


@ScaledWeight.implements(aten.bmm.default)
def _bmm(a: Any, b: Any) -> Tensor:
    """(E, M, K) x (E, K, N): one product an expert. Either may be the weight."""
    if not isinstance(b, QTensor):
        return _bmm(b.transpose(-2, -1), a.transpose(-2, -1)).transpose(-2, -1)
    _needs(b, "a batched product")
    experts, rows, K = a.shape
    if not experts or not rows:
        return a.new_empty(experts, rows, b.shape[2])
    # Groups of equal sizes: one launch, where the format has a grouped op.
    ends = torch.arange(1, experts + 1, dtype=torch.int32, device=a.device) * rows
    y = _grouped_linear(a.reshape(experts * rows, K), b, ends, None)
    if y is not None:
        return y.reshape(experts, rows, b.shape[2])
    return torch.stack([_mm(a[e], b[e]) for e in range(b.shape[0])])


@ScaledWeight.implements(torch._grouped_mm)
def _grouped_mm(
    a: Tensor, b: Any, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """What F.grouped_mm calls: formats with a grouped kernel need no more of torch's dispatch."""
    y = None
    if offs is not None and isinstance(b, ScaledWeight):
        y = _grouped_linear(a, b, offs, bias)
    if y is None:
        with torch._C.DisableTorchFunctionSubclass():
            return torch._grouped_mm(a, b, offs, bias, out_dtype)
    return y if out_dtype is None else y.to(out_dtype)


# Transformers calls an op of its own when it compiles experts that are not bfloat16.
@ScaledWeight.implements(aten._grouped_mm.default, "transformers.grouped_mm_fallback.default")
def _aten_grouped_mm(
    a: Tensor, b: Any, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """(T, K) x (E, K, N), tokens sorted by expert: rows offs[e-1] to offs[e] meet expert e."""
    _needs(b, "a grouped product")
    if offs is None or a.dim() != 2 or bias is not None:
        raise UnsupportedOpError(
            "a grouped product with a quantized weight takes 2-D tokens sorted by expert, offs, "
            "and no bias"
        )
    y = _grouped_linear(a, b, offs, bias)
    if y is None:
        y = grouped_product(a, b, offs)
    return y if out_dtype is None else y.to(out_dtype)


def _grouped_linear(a: Tensor, b: Any, offs: Tensor, bias: Any) -> Tensor | None:
    """The grouped product by the kernel of the format, or None."""
    if not b.transposed or b.dim() != 3 or a.dim() != 2 or bias is not None:
        return None
    y: Tensor | None = b.grouped_linear(a, offs.to(torch.int32))
    return y


@ScaledWeight.implements(F.embedding)
def _embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None:
        raise UnsupportedOpError(
            "embedding with max_norm rewrites its weight, which a quantized one cannot; "
            "leave max_norm=None"
        )
    return weight.rows(input)


@ScaledWeight.implements(aten.embedding.default)
def _aten_embedding(weight: Any, indices: Tensor, *_: Any) -> Tensor:
    return weight.rows(indices)


def _conv(spatial: int) -> Callable[..., Tensor]:
    def conv(
        input: Tensor,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        """A 1x1 convolution is a linear over channels; a stride skips positions, padding adds zero
        ones."""
        _needs(weight, "a convolution")
        if groups != 1 or weight.trailing != spatial:
            raise UnsupportedOpError(
                f"a quantized conv{spatial}d weight is (N, K{', 1' * spatial}) with groups=1, got "
                f"{tuple(weight.shape)}"
            )
        step, pad = (
            (n,) * spatial if isinstance(n, int) else tuple(n)
            for n in (stride, 0 if padding in ("valid", "same") else padding)
        )
        if any(pad):
            input = F.pad(input, [n for p in reversed(pad) for n in (p, p)])
        channels = input.dim() - 1 - spatial
        index: tuple[Any, ...] = (Ellipsis, *(slice(None, None, n) for n in step))
        x = input[index].movedim(channels, -1)
        return weight.flat().linear(x, bias).movedim(-1, channels)

    return conv


for _spatial, _function in enumerate((F.conv1d, F.conv2d, F.conv3d), start=1):
    ScaledWeight.implements(_function)(_conv(_spatial))
