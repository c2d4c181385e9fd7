"""Tokens of experts to float8 in both directions: what a grouped product and its wgrad need.

    x_MK[m] ~ codes_MK[m] * scale_M[m]
    x_MK[m, k] ~ codes_KP[k, p] * scale_EK[e, k]        p the place of token m of expert e

M tokens sorted by expert, K features, E experts, P places of tokens: those of an expert start at a
multiple of 32, behind the padded tokens of the experts before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ao_core.numerics import quantize_blocks
from ao_kernels.ops import directions
from ao_kernels.ops.experts import rows_of
from ao_kernels.registry import op

PLACES = 32  # what an expert's places are padded to: a float8 matrix instruction sums over 32


@op(
    "(Tensor x, ScalarType dtype, Tensor offsets, bool power_of_two=False, "
    'str outputs="both") -> (Tensor, Tensor, Tensor, Tensor, Tensor)',
    tensors=(),
    inline=False,
)
def quantize_grouped_both(
    x: Tensor,
    dtype: torch.dtype,
    offsets: Tensor,
    power_of_two: bool = False,
    outputs: str = "both",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Quantize each token with a scale of its own and, transposed, each feature of an expert.

    s = max(amax|x| / max8, tiny), rounded up to a power of two with ``power_of_two``
    code = float8(clamp(x / s, -max8, max8))

    with max8 the largest finite value of the dtype and tiny the smallest normal float32; see
    docs/numerics.md. Features count as padded with zeros to K16, and, transposed, the tokens of
    each expert to a multiple of 32, so that no step of a product over places is of two experts
    (torch._scaled_grouped_mm wants multiples of 16): P = M32 + 32 E places are enough for any
    offsets. The host never waits for them on a GPU.

    Args:
        x: (M, K) float32, bfloat16 or float16, any strides. float64 runs the reference, and is
        rounded to float32 first.
        dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        offsets: (E,) int32, ascending: the end of each expert's rows. Rows behind the last end are
        of no expert.
        outputs: "both", "rows" or "columns".

    Returns:
        codes (M16, K16) and scale (M16, 1) of all rows; codes (K16, P) and scale (E, K16) of the
        columns, and the ends (E,) int32 of the experts' places, multiples of 32. Places of no
        token are 0 (NaN beside codes of a NaN scale; 0 behind the last end). Contiguous; those
        that are not wanted are empty. A row, or the column of an expert, that holds NaN or inf has
        a NaN scale and NaN codes. Every kernel gives the same bits.

    Raises:
        TypeError, ValueError: arguments that do not fit together.

    Gradients: none.
    """
    E = offsets.shape[0]

    def quantize(ready: Tensor) -> tuple[Tensor, Tensor]:
        block = (1, ready.shape[1])
        return quantize_blocks(ready, block=block, dtype=dtype, power_of_two=power_of_two)

    codes, scale, codes_t, scale_t, _ = _fake(x, dtype, offsets, power_of_two, outputs)
    ends = places_of(offsets, x.shape[0])
    if outputs != "columns":
        codes, scale = quantize(directions.pad(x))
        codes = codes.contiguous()
    if outputs != "rows":
        codes_t.view(torch.uint8).zero_()
        tiny = quantize(x.new_zeros(1, 1))[1]
        scale_t.copy_(tiny.expand(E, codes_t.shape[0]))
        for expert, rows in rows_of(x, offsets):
            ready = _pad(x[rows])
            found, scale_K = quantize(ready.mT)
            end = int(ends[expert])
            codes_t[:, end - ready.shape[0] : end] = found
            scale_t[expert] = scale_K[:, 0]
    return codes, scale, codes_t, scale_t, ends


def n_places(M: int, E: int) -> int:
    """P: places that M tokens of E experts take at most."""
    return padded_places(M) + PLACES * E


def places_of(offsets: Tensor, M: int) -> Tensor:
    """The ends of the experts' places, padded, of the ends of their tokens."""
    upto = offsets.clamp(0, M).cummax(0).values
    counts = upto.diff(prepend=upto.new_zeros(1))
    return ((counts + PLACES - 1) // PLACES * PLACES).cumsum(0).to(torch.int32)


def padded_places(n: int) -> int:
    """n tokens of an expert rounded up to :data:`PLACES`."""
    return (n + PLACES - 1) // PLACES * PLACES


def _pad(x: Tensor) -> Tensor:
    """(n, K) -> (n32, K16) float32 with zeros."""
    ready = directions.pad(x)
    return torch.nn.functional.pad(ready, (0, 0, 0, padded_places(x.shape[0]) - ready.shape[0]))


@quantize_grouped_both.check
def _check(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> None:
    name = "quantize_grouped_both"
    directions.check(name, x, outputs)
    directions.check_float8_dtype(name, dtype)
    if offsets.dtype != torch.int32:
        raise TypeError(f"{name}: offsets have dtype {offsets.dtype}; they must be torch.int32")
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(
            f"{name}: offsets have shape {tuple(offsets.shape)}; they must be (E,): the end of "
            "each expert's rows, of at least one expert"
        )
    if offsets.device != x.device:
        raise RuntimeError(
            f"{name}: x is on device {x.device} and offsets on {offsets.device}; move them to one "
            "device"
        )


@quantize_grouped_both.fake
def _fake(
    x: Tensor, dtype: torch.dtype, offsets: Tensor, power_of_two: bool, outputs: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    codes, scale, codes_t, scale_t = directions.room(
        x, outputs, dtype, torch.float32, lambda rows, columns: (rows, 1)
    )
    if outputs != "rows":
        E, features = offsets.shape[0], directions.padded(x.shape[1])
        codes_t = x.new_empty((features, n_places(x.shape[0], E)), dtype=dtype)
        scale_t = x.new_empty((E, features), dtype=torch.float32)
    return codes, scale, codes_t, scale_t, torch.empty_like(offsets)
