"""What is checked of every grouped linear, and calls of each of them.

T tokens sorted by expert, E experts, N output features, K input features. A test class takes one of
the classes of ops below, then :class:`Grouped`, then a contract.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from dynamic_samples import token_magnitude
from float8_samples import WHOLE, float8_activations, magnitude_float8
from linear_samples import magnitude_int8, magnitude_intx
from torch import Tensor

from ao_core.packing import pack
from ao_core.testing.op_contract import Sample
from ao_kernels.ops import (
    experts,
    float8_dynamic_grouped_linear,
    float8_grouped_linear,
    float8_int4_grouped_linear,
    int4_grouped_linear,
    int8_dynamic_grouped_linear,
    int8_grouped_linear,
    intx_grouped_linear,
    layout,
)

# (rows of each expert, and of none; N; K; group_size): few, uneven and no rows, one expert, more
# experts than rows, an expert of several tiles, odd sizes, groups that do not divide, one feature.
SHAPES = [
    ([2, 0, 3], 0, 20, 128, 32),
    ([4], 0, 17, 100, 40),
    ([0, 0, 7, 0, 1], 0, 33, 257, 64),
    ([1, 2], 3, 48, 96, 96),
    ([17, 1, 0, 36], 0, 9, 384, 128),
    ([0, 1, 0], 0, 140, 1000, 200),
    ([0, 0], 5, 5, 3, 8),
    ([2] * 9, 1, 1, 40, 8),
]
# Models' sizes: an expert of many tokens and others of few, and one for all.
LARGE = [
    ([1, 0, 0, 1, 0, 0, 0, 0], 0, 2048, 4096, 128),
    ([9, 0, 30, 1], 2, 1536, 2048, 128),
    ([700, 3, 0, 250], 0, 1024, 2048, 128),
    ([300, 200], 0, 1000, 1100, 200),
]


class Grouped:
    """Checks of all grouped ops; ``result`` computes on the device of the tests."""

    op: Any
    device = "cpu"
    every = 1  # sample of which experts are also called alone
    # Rows of experts, and N, K and group sizes around those of tiles.
    odd_rows: Any = ([1], [0, 1], [16, 17], [15, 0, 33], [0] * 5 + [2])
    odd_sizes: Any = ((1, 1, 8), (15, 7, 8), (17, 9, 8), (65, 33, 16), (129, 72, 24))

    def odd_shapes(self) -> list[Any]:
        """Those rows with those sizes."""
        return list(itertools.product(self.odd_rows, self.odd_sizes))

    def result(self, *args: Any) -> Tensor:
        return self.op(*(a.to(self.device) if isinstance(a, Tensor) else a for a in args)).cpu()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
    def test_activations_of_every_rank_and_stride(self, dtype: torch.dtype) -> None:
        """Strides of any kind, and numbers of rows that offsets do not know; but (T, K) only."""
        x, *others = self._first(dtype)
        T, K = x.shape
        wide = torch.randn(T, 2 * K + 3, device=x.device).to(dtype)
        cases = [wide[:, 1 : 1 + K], wide[:, : 2 * K : 2], x.T.contiguous().T, x[:1].expand(T, K)]
        cases += [torch.cat((x, x))[::2], x[:0], x[:1], torch.cat((x, x))]
        for case in cases:
            self._match((case, *others))
        with pytest.raises(ValueError, match=r"\(T, K\), tokens sorted by expert"):
            self.op(x[None], *others)

    def test_every_expert_alone(self) -> None:
        """The rows of an expert are what it gives alone, and rows of none are zeros."""
        for sample in list(self.samples(torch.float32))[:: self.every]:
            x, *weight, offsets, bias = sample.args
            y, start = self.result(*sample.args), 0
            bound = 2 * self.bound(sample.args, self.expected(sample.args)).cpu()
            for expert, end in enumerate(offsets.tolist()):
                alone = [_of(w, expert) for w in weight]
                one = torch.tensor([end - start], dtype=torch.int32)
                b = None if bias is None else bias[expert : expert + 1]
                apart = y[start:end].double() - self.result(x[start:end], *alone, one, b).double()
                assert (apart.abs() <= bound[start:end]).all(), f"{sample.name}, expert {expert}"
                start = end
            assert torch.equal(y[start:], torch.zeros_like(y[start:]))

    def test_odd_shapes(self) -> None:
        """Sizes around those of tiles, in every direction."""
        shapes = [(rows, len(rows) - 1, *sizes) for rows, sizes in self.odd_shapes()]
        for sample in self.calls(torch.float32, shapes):
            args = tuple(a.to(self.device) if isinstance(a, Tensor) else a for a in sample.args)
            self._match(args)

    def test_rows_of_no_expert_are_not_read(self) -> None:
        x, *others, offsets, bias = self._first(torch.bfloat16)
        garbage = torch.full_like(x[:2], torch.nan)
        y = self.result(torch.cat((x, garbage)), *others, offsets, bias)
        assert torch.equal(y[: len(x)], self.result(x, *others, offsets, bias))
        assert torch.equal(y[len(x) :], torch.zeros_like(y[:2]))


def _of(field: Any, expert: int) -> Any:
    if not isinstance(field, Tensor) or field.shape[0] == 1:
        return field
    return field[expert : expert + 1]


def each(magnitude: Callable[..., Tensor], args: tuple[Any, ...]) -> Tensor:
    """A function of the arguments of a linear, for every expert: float64."""
    x, *weight, offsets, bias = args
    return experts.each(magnitude, x.double(), tuple(weight), offsets, bias)


def refused_alike(op: Any, args: tuple[Any, ...]) -> None:
    """What every grouped op refuses, in the words of its callers."""
    x, codes, scale, *others, offsets, bias = args
    for message, call in [
        ("must be torch.int32", (x, codes, scale, *others, offsets.long(), bias)),
        ("they must be \\(3,\\): the end of", (x, codes, scale, *others, offsets[:2], bias)),
        ("at least one expert", (x, codes[0], scale, *others, offsets, bias)),
        ("at least one expert", (x, codes[:0], scale, *others, offsets, bias)),
        ("or \\(1, ...\\) where all share it", (x, codes, scale[:2], *others, offsets, bias)),
        ("so it must be \\(3, 20\\)", (x, codes, scale, *others, offsets, bias[0])),
        ("x has dtype torch.int32", (x.int(), codes, scale, *others, offsets, bias)),
        (f"{op.name}: codes have", (x[:, :-8], codes, scale, *others, offsets, bias)),
        (f"{op.name}: scale has shape", (x, codes, scale[:, :5], *others, offsets, bias)),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            op(*call)


class RoundedInCuda:
    """For Triton's kernels on a GPU, where those in CUDA take the same calls: with many rows an
    expert, these round weights to bfloat16, once, or twice with zeros."""

    magnitude: Any

    def kernel_bound(self, label: str, args: tuple[Any, ...], bound: Tensor) -> Tensor:
        return bound + self.rounding(args) if label.strip() == "cuda" else bound

    def rounding(self, args: tuple[Any, ...]) -> Tensor | float:
        x, codes = args[:2]
        if x.dtype == torch.bfloat16 and x.shape[0] > 3 * min(x.shape[0], codes.shape[0]):
            return 2.0**-7 * self.magnitude(args)
        return 0.0


class RoundedWeights(RoundedInCuda):
    """Where any call may go to the kernels in CUDA."""

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        return super().bound(args, expected) + self.rounding(args)

    def kernel_bound(self, label: str, args: tuple[Any, ...], bound: Tensor) -> Tensor:
        return bound


class _Op:
    """Calls and exact numbers of an op; ``weight`` draws the arguments between x and offsets."""

    op: Any
    linear_magnitude: Any
    device = "cpu"

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def calls(self, dtype: torch.dtype, shapes: list[Any] = SHAPES) -> Iterator[Sample]:
        rng = torch.Generator().manual_seed(8)
        for index, (rows, none, N, K, g) in enumerate(shapes):
            E, T = len(rows), sum(rows) + none
            x = torch.randn(T, K, generator=rng).to(dtype)
            offsets = torch.tensor(rows).cumsum(0).to(torch.int32)
            bias = torch.randn(E, N, generator=rng).to([torch.float32, torch.bfloat16][index % 2])
            weight = self.weight(index, E, N, K, g, rng)
            name = f"{rows} rows and {none}, {N}x{K} g{g}"
            yield Sample(name, (x, *weight, offsets, bias if index % 3 == 0 else None))

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for sample in self.calls(dtype):
            moved = (a.to(self.device) if isinstance(a, Tensor) else a for a in sample.args)
            yield Sample(sample.name, tuple(moved))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        return each(self.linear_magnitude, args)

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        """Straight through the rounding of activations: the linear of the dequantized weight."""

        def linear(x: Tensor, *weight: Any) -> Tensor:
            *fields, bias = weight
            return layout.linear(x, self.dense(x.shape[1], *fields), bias)

        x, *_, bias = args
        nothing = 0 * x.sum() if bias is None else 0 * (x.sum() + bias.sum())
        return each(linear, args) + nothing  # depends on both where no expert has rows

    def dense(self, length: int, *fields: Any) -> Tensor:
        raise NotImplementedError


def _scales(index: int, E: int, N: int, G: int, K: int, rng: Any) -> Tensor:
    shape = [(E, N, G), (E, N, G), (E, 1, G), (1, N, G), (1, 1, G)][index % 5]
    dtype = torch.float32 if index % 3 == 2 else torch.bfloat16
    return ((torch.rand(shape, generator=rng) + 0.01) / K**0.5).to(dtype)


class Intx(_Op):
    op = intx_grouped_linear

    def bits(self, index: int) -> int:
        return (3, 8, 2, 5, 6, 7, 1, 4)[index % 8]

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        bits = self.bits(index)
        codes = torch.randint(0, 2**bits, (E, N, K), generator=rng, dtype=torch.uint8)
        scale = _scales(index, E, N, -(-K // g), K, rng)
        zero = 2 ** (bits - 1) + torch.randn(scale.shape, generator=rng)
        given = zero.to(scale.dtype) if index % 2 else None
        if self.op is intx_grouped_linear:
            return pack(codes, bits), scale, given, bits, g
        return pack(codes, bits), scale, given, g

    @staticmethod
    def linear_magnitude(x: Tensor, *args: Any) -> Tensor:
        return magnitude_intx(x, *args)

    def dense(self, length: int, *fields: Any) -> Tensor:
        codes, scale, zero, *bits, g = fields
        return layout.dequantize_intx(
            codes,
            scale,
            zero,
            bits=bits[0] if bits else 4,
            group_size=g,
            length=length,
            dtype=torch.float64,
        )

    def test_every_code_in_every_place(self) -> None:
        """Of each number of bits, for the second of two experts; the first has other codes."""
        for bits in range(1, 9) if self.op is intx_grouped_linear else (4,):
            K = max(64, 1 << bits)
            codes = torch.arange(K).remainder(1 << bits).to(torch.uint8)
            both = torch.stack((codes.flip(0)[None], codes[None]))
            others = (bits, K) if self.op is intx_grouped_linear else (K,)
            offsets = torch.tensor([0, K], dtype=torch.int32)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                x = torch.eye(K, dtype=dtype) * (
                    448 if self.op is float8_int4_grouped_linear else 1
                )
                scale = torch.ones(1, 1, 1)
                y = self.result(x, pack(both, bits), scale, None, *others, offsets) / x.max()
                assert torch.equal(y[:, 0], (codes.float() - 2 ** (bits - 1)).to(dtype))


class Int4(Intx):
    op = int4_grouped_linear

    def bits(self, index: int) -> int:
        return 4

    @staticmethod
    def linear_magnitude(x: Tensor, codes: Tensor, scale: Tensor, zero: Any, *args: Any) -> Tensor:
        return magnitude_intx(x, codes, scale, zero, 4, *args)


class Float8Int4(Int4):
    op = float8_int4_grouped_linear

    @staticmethod
    def linear_magnitude(x: Tensor, codes: Tensor, scale: Tensor, zero: Any, *args: Any) -> Tensor:
        return magnitude_intx(float8_activations(x, "row"), codes, scale, zero, 4, *args)


class Int8(_Op):
    op = int8_grouped_linear
    linear_magnitude = staticmethod(magnitude_int8)

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        codes = torch.randint(-127, 128, (E, N, K), generator=rng, dtype=torch.int8)
        return codes, _scales(index, E, N, -(-K // g), K, rng), g

    def dense(self, length: int, *fields: Any) -> Tensor:
        codes, scale, *g = fields
        group_size = g[0] if g else length
        return layout.dequantize_int8(codes, scale, group_size=group_size, dtype=torch.float64)

    def test_every_code(self) -> None:
        codes = torch.arange(-128, 128).to(torch.int8)
        both = torch.stack((codes.flip(0)[None], codes[None]))
        others = (256,) if self.op is int8_grouped_linear else ()
        offsets = torch.tensor([0, 256], dtype=torch.int32)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.eye(256, dtype=dtype) * (127 if self.op is int8_dynamic_grouped_linear else 1)
            y = self.result(x, both, torch.ones(1, 1, 1), *others, offsets).float() / x.max()
            assert torch.equal(y[:, 0].round(), codes.float())


class Int8Dynamic(Int8):
    op = int8_dynamic_grouped_linear

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        return super().weight(index, E, N, K, K, rng)[:2]

    @staticmethod
    def linear_magnitude(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        return magnitude_int8(token_magnitude(x, "symmetric"), codes, scale, x.shape[1], bias)


class Float8(_Op):
    op = float8_grouped_linear
    linear_magnitude = staticmethod(magnitude_float8)

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        kind = torch.float8_e5m2 if index % 4 == 3 else torch.float8_e4m3fn
        codes = (torch.randn(E, N, K, generator=rng) * 64).to(kind)
        block_n, block_k = [(1, WHOLE), (16, g), (WHOLE, WHOLE), (1, g)][index % 4]
        shape = (1 if block_n == WHOLE else E, -(-N // block_n), -(-K // block_k))
        scale = (torch.rand(shape, generator=rng) + 0.01) / (64 * K**0.5)
        return codes, scale, block_n, block_k

    def dense(self, length: int, *fields: Any) -> Tensor:
        return layout.dequantize_float8(*fields[:4], torch.float64)

    def test_every_code(self) -> None:
        for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
            codes = torch.arange(256).to(torch.uint8).view(kind)
            codes = codes[codes.float().isfinite()]
            K = len(codes)
            both = torch.stack((codes.float().flip(0)[None], codes.float()[None])).to(kind)
            others = ("row",) if self.op is float8_dynamic_grouped_linear else ()
            offsets, one = torch.tensor([0, K], dtype=torch.int32), torch.ones(1, 1, 1)
            x = torch.eye(K) * (448 if self.op is float8_dynamic_grouped_linear else 1)
            y = self.result(x, both, one, WHOLE, WHOLE, *others, offsets)
            assert torch.equal(y[:, 0], codes.float() * x.max())


class Float8Dynamic(Float8):
    op = float8_dynamic_grouped_linear
    activations = ("row", "block", "tensor")

    def weight(self, index: int, E: int, N: int, K: int, g: int, rng: Any) -> tuple[Any, ...]:
        activation = self.activations[index % len(self.activations)]
        return (*super().weight(index, E, N, K, g, rng), activation)

    @staticmethod
    def linear_magnitude(x: Tensor, *args: Any) -> Tensor:
        codes, scale, block_n, block_k, activation, bias = args
        q = float8_activations(x, activation, block_k)
        return magnitude_float8(q, codes, scale, block_n, block_k, bias)

    def test_nan_stays_with_those_who_share_its_scale(self) -> None:
        """One scale for all tokens of an expert: NaN and inf reach no other."""
        x, codes, scale, *blocks, offsets, _ = next(
            self.calls(torch.float32, [([3, 20, 2], 0, 16, 40, 40)])
        ).args
        weight = (codes, scale, *blocks[:2])
        clean = self.result(x, *weight, "tensor", offsets)
        for value in (torch.nan, torch.inf):
            for expert, row in enumerate((1, 19, 24)):
                dirty = x.clone()
                dirty[row, 7] = value
                y = self.result(dirty, *weight, "tensor", offsets)
                begin = [0, *offsets.tolist()][expert]
                end = offsets.tolist()[expert]
                assert y[begin:end].isnan().all()
                assert torch.equal(y[:begin], clean[:begin]) and torch.equal(y[end:], clean[end:])
