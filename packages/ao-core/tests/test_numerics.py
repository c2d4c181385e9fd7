"""Integer numerics against float64 definitions: minmax, hqq, groups, special values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_core import numerics
from ao_core.numerics import (
    choose_int8_scale,
    choose_intx_qparams,
    dequantize_int8,
    dequantize_intx,
    groups,
    optimize_intx_qparams,
    quantize_int8,
    quantize_intx,
)

BITS = range(1, 9)
MAPPINGS = ("symmetric", "asymmetric")
SCALE_DTYPES = (torch.bfloat16, torch.float32)
TINY = torch.finfo(torch.float32).tiny
BF16 = 2**-8  # half a unit in the last place, relative, with room for the float32 in between


def weight(*shape: int, seed: int = 0) -> Tensor:
    """Values of very different sizes, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * torch.rand(*shape, generator=generator) ** 3


def spread(parameter: Tensor, length: int, group_size: int) -> Tensor:
    """(..., G) -> (..., K): each group's value for each of its elements."""
    return parameter.repeat_interleave(group_size, -1)[..., :length]


def by_group(w: Tensor, group_size: int, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """fn of each group (..., g) in float64, stacked to (..., G): the slow definition."""
    return torch.stack([fn(part) for part in w.double().split(group_size, -1)], -1)


def quantized(w: Tensor, bits: int, group_size: int, **how: Any) -> tuple[Tensor, ...]:
    """codes, scale, zero, and the float32 weight that they stand for."""
    scale, zero = choose_intx_qparams(w, bits=bits, group_size=group_size, **how)
    codes = quantize_intx(w, scale, zero, bits=bits, group_size=group_size)
    back = dequantize_intx(codes, scale, zero, bits=bits, group_size=group_size)
    return codes, scale, zero, back


# --- int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("group_size", [1, 7, 16, 40, 100])
def test_int8_is_its_definition(group_size: int, dtype: torch.dtype) -> None:
    w = weight(9, 40).to(dtype)
    exact = w.float().double()  # float64 divisions, rounded to float32, are float32 divisions
    scale = choose_int8_scale(w, group_size=group_size)
    expected = by_group(exact, group_size, lambda x: x.abs().amax(-1) / 127).float()
    assert scale.dtype == torch.float32 and torch.equal(scale, expected)
    codes = quantize_int8(w, scale, group_size=group_size)
    each = spread(scale, 40, group_size).double()
    assert codes.dtype == torch.int8
    assert torch.equal(codes, (exact / each).float().double().round().to(torch.int8))
    assert all(part.abs().amax(-1).eq(127).all() for part in codes.split(group_size, -1))
    back = dequantize_int8(codes, scale, group_size=group_size)
    assert torch.equal(back, (codes.double() * each).float())
    assert ((back - exact).abs() <= each * (0.5 + 2**-16)).all()
    for out in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(
            dequantize_int8(codes, scale, group_size=group_size, dtype=out), back.to(out)
        )


def test_int8_rounds_half_to_even() -> None:
    w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -127.0]])
    codes = quantize_int8(w, choose_int8_scale(w, group_size=10), group_size=10)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, -127]]


def test_int8_quantizes_its_own_values_to_the_same_codes() -> None:
    codes = torch.arange(-127, 128, dtype=torch.int8).repeat(64, 1)
    scale = weight(64, 1).abs() + 1e-3
    w = dequantize_int8(codes, scale, group_size=255)
    assert torch.equal(quantize_int8(w, scale, group_size=255), codes)
    again = choose_int8_scale(w, group_size=255)
    assert torch.equal(quantize_int8(w, again, group_size=255), codes)


# --- intx, from the extremes


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_intx_is_its_definition(bits: int, mapping: str, scale_dtype: torch.dtype) -> None:
    for group_size in (8, 16, 48, 64):  # 44 is ragged for the first two
        w = weight(50, 44, seed=bits)
        how = {"mapping": mapping, "scale_dtype": scale_dtype}
        codes, scale, zero, back = quantized(w, bits, group_size, **how)
        assert scale.dtype == scale_dtype and scale.shape == (50, groups(44, group_size))
        assert codes.dtype == torch.uint8 and int(codes.max()) < 2**bits
        s = spread(scale, 44, group_size).double()
        if zero is None:
            z = torch.full_like(s, 2 ** (bits - 1))
        else:
            assert zero.dtype == scale_dtype and zero.shape == scale.shape
            z = spread(zero, 44, group_size).double()

        exact_scale, exact_zero = definition(w, bits, group_size, mapping)
        rounding = BF16 if scale_dtype == torch.bfloat16 else 2**-22
        assert ((scale - exact_scale).abs() <= exact_scale.abs() * rounding).all()
        if mapping == "asymmetric":  # the zero belongs to the rounded scale
            low = by_group(w, group_size, lambda x: x.amin(-1).clamp(max=0))
            assert ((zero.double() + low / scale.double()).abs() <= 0.5 + 1e-5).all()
            assert torch.equal(zero.double(), zero.double().round())
        elif zero is not None:
            assert torch.equal(zero.double(), exact_zero)

        position = w.double() / s + z
        wrong = codes.double() != position.round().clamp(0, 2**bits - 1)
        assert (((position[wrong] % 1) - 0.5).abs() < 1e-5).all()  # a tie in float32
        assert ((back - (codes.double() - z) * s).abs() <= back.abs() * 2**-23).all()


def definition(w: Tensor, bits: int, group_size: int, mapping: str) -> tuple[Tensor, Tensor | None]:
    if mapping == "asymmetric":
        span = by_group(w, group_size, lambda x: x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0))
        return span / (2**bits - 1), None
    if bits == 1:
        scale = by_group(w, group_size, lambda x: 2 * x.abs().mean(-1))
        return scale, torch.full_like(scale, 0.5)

    def signed(x: Tensor) -> Tensor:
        largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
        return -largest / 2 ** (bits - 1)

    return by_group(w, group_size, signed), None


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("bits", BITS)
def test_intx_error_is_bounded(bits: int, mapping: str) -> None:
    """Half a step inside the range of the codes; at its ends the rounding of scale and zero,
    too."""
    top = 2**bits - 1
    for scale_dtype in SCALE_DTYPES:
        w = weight(64, 100, seed=bits)
        how = {"mapping": mapping, "scale_dtype": scale_dtype}
        _, scale, zero, back = quantized(w, bits, 32, **how)
        s = spread(scale, 100, 32).double()
        z = (top + 1) / 2 if zero is None else spread(zero, 100, 32).double()
        position, steps = w.double() / s + z, (back - w).double().abs() / s.abs()
        inside = (position >= -0.5) & (position <= top + 0.5)
        assert (steps[inside] <= 0.5 + 2**-14).all()
        ends = top * (BF16 if scale_dtype == torch.bfloat16 else 2**-20)
        if mapping == "asymmetric":
            assert (steps <= 0.5 + ends).all()
        elif bits > 1:  # the sign with a code less is clipped by up to one step
            assert (steps <= 1 + ends).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_gives_the_largest_weight_the_end_with_one_code_more(bits: int) -> None:
    for sign in (1, -1):
        w = torch.tensor([[0.25, -0.125, 1.0, 0.0, 0.5, -0.75, 0.0, 0.0]]) * sign
        codes, scale, zero, back = quantized(w, bits, 8)
        assert zero is None and codes[0, 2] == 0 and back[0, 2] == sign
        assert scale.item() == -sign / 2 ** (bits - 1)
    tie = torch.tensor([[1.0, -1.0]])  # the negative one takes it, and the scale is positive
    codes, scale, _, _ = quantized(tie, bits, 2)
    assert scale > 0 and codes.tolist() == [[2**bits - 1, 0]]


@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_has_an_exact_zero(bits: int) -> None:
    w = weight(40, 64)
    w[:, ::5] = 0
    w[:10] = w[:10].abs()
    w[10:20] = -w[10:20].abs()
    _, _, zero, back = quantized(w, bits, 16, mapping="asymmetric")
    assert (back[:, ::5] == 0).all()
    assert (zero[:10] == 0).all() and (zero[10:20] >= 2**bits - 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_symmetric_quantizes_its_own_values_to_the_same_codes(
    bits: int, dtype: torch.dtype
) -> None:
    w = weight(64, 96, seed=bits)
    codes, scale, zero, _ = quantized(w, bits, 32)
    back = dequantize_intx(codes, scale, zero, bits=bits, group_size=32, dtype=dtype)
    again, scale_again, _, _ = quantized(back, bits, 32)
    assert torch.equal(again, codes)
    assert torch.equal(scale_again, scale)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_survives_its_own_parameters(bits: int) -> None:
    """quantize(dequantize(c)) = c for every code, any scale of either sign, any zero."""
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(200, 1)
    scale = weight(200, 1, seed=1).bfloat16()
    scale[scale == 0] = 1
    integer = torch.randint(0, 2**bits, (200, 1), generator=torch.Generator().manual_seed(bits))
    fractional = integer + torch.rand(200, 1, generator=torch.Generator().manual_seed(bits))
    for zero in (None, integer.bfloat16(), fractional.bfloat16(), (-3 * fractional).bfloat16()):
        how = {"bits": bits, "group_size": 2**bits}
        w = dequantize_intx(codes, scale, zero, **how)
        assert torch.equal(quantize_intx(w, scale, zero, **how), codes)


def test_intx_rounds_half_to_even_and_saturates() -> None:
    w = torch.tensor([[-9.0, -8.0, -0.5, 0.5, 1.5, 2.5, 7.0, 7.5, 1e30, -1e30]])
    codes = quantize_intx(w, torch.ones(1, 1), None, bits=4, group_size=10)
    assert codes.tolist() == [[0, 0, 8, 8, 10, 10, 15, 15, 15, 0]]
    codes = quantize_intx(w, torch.ones(1, 1), torch.full((1, 1), 7.5), bits=4, group_size=10)
    assert codes.tolist() == [[0, 0, 7, 8, 9, 10, 14, 15, 15, 0]]


@pytest.mark.parametrize("bits", [0, 9, -1, 4.0, "4", None])
def test_bits_out_of_range(bits: Any) -> None:
    w, scale = torch.ones(1, 8), torch.ones(1, 1)
    with pytest.raises(ValueError, match="integer codes have 1 to 8 bits"):
        choose_intx_qparams(w, bits=bits, group_size=8)
    with pytest.raises(ValueError, match="integer codes have 1 to 8 bits"):
        quantize_intx(w, scale, None, bits=bits, group_size=8)
    with pytest.raises(ValueError, match="integer codes have 1 to 8 bits"):
        optimize_intx_qparams(w, bits=bits, group_size=8)


def test_refused_arguments() -> None:
    w = torch.ones(2, 16)
    with pytest.raises(ValueError, match="mapping is one of symmetric, asymmetric; got 'affine'"):
        choose_intx_qparams(w, bits=4, group_size=8, mapping="affine")
    with pytest.raises(
        ValueError, match=r"scales are torch.bfloat16 or torch.float32, got torch.float16"
    ):
        choose_intx_qparams(w, bits=4, group_size=8, scale_dtype=torch.float16)
    with pytest.raises(ValueError, match="16 in groups of 8 has 2 scales"):
        quantize_int8(w, torch.ones(2, 1), group_size=8)
    with pytest.raises(ValueError, match="16 in groups of 12 has 2 scales"):
        dequantize_intx(w.to(torch.uint8), torch.ones(2, 1), None, bits=4, group_size=12)


# --- hqq


def objective(w: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group_size: int) -> Tensor:
    """sum |w - (code - zero) * scale| ** 2.5 of each group, in float64, with the codes that
    result."""
    how = {"bits": bits, "group_size": group_size}
    codes = quantize_intx(w, scale, zero, **how)
    error = (dequantize_intx(codes, scale, zero, **how).double() - w.double()).abs() ** 2.5
    return by_group(error, group_size, lambda x: x.sum(-1))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_hqq_is_never_worse_than_the_extremes(bits: int, scale_dtype: torch.dtype) -> None:
    total = {"minmax": 0.0, "hqq": 0.0}
    for group_size in (16, 64):
        w = weight(64, 100, seed=bits)
        w[0] = 0
        w[1] = 3.0
        w[2, :50] = 0
        how = {"bits": bits, "group_size": group_size}
        minmax = choose_intx_qparams(w, mapping="asymmetric", scale_dtype=scale_dtype, **how)
        hqq = optimize_intx_qparams(w, scale_dtype=scale_dtype, **how)
        assert hqq[0].dtype == hqq[1].dtype == scale_dtype
        before, after = objective(w, *minmax, **how), objective(w, *hqq, **how)
        assert (after <= before * (1 + 1e-4) + 1e-30).all()
        assert (after[:2] == 0).all() or bits == 1
        total["minmax"] += before.sum().item()
        total["hqq"] += after.sum().item()
    assert total["hqq"] < total["minmax"] * (0.9 if bits < 6 else 1)


def test_hqq_finds_a_grid() -> None:
    """Weights that lie on a grid come back exactly, whatever its zero."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (100, 64), generator=generator).to(torch.uint8)
    codes[:, 0], codes[:, 1] = 0, 15
    w = dequantize_intx(
        codes, torch.full((100, 1), 0.25), torch.full((100, 1), 6.0), bits=4, group_size=64
    )
    scale, zero = optimize_intx_qparams(w, bits=4, group_size=64)
    back = dequantize_intx(
        quantize_intx(w, scale, zero, bits=4, group_size=64), scale, zero, bits=4, group_size=64
    )
    assert torch.equal(back, w)


# --- special values, for every quantizer of integers

Quantizer = Callable[[Tensor, int], Tensor]


def through_int8(w: Tensor, group_size: int) -> Tensor:
    scale = choose_int8_scale(w, group_size=group_size)
    codes = quantize_int8(w, scale, group_size=group_size)
    return dequantize_int8(codes, scale, group_size=group_size)


def through_intx(bits: int, mapping: str) -> Quantizer:
    return lambda w, group_size: quantized(w, bits, group_size, mapping=mapping)[3]


def through_hqq(bits: int) -> Quantizer:
    def quantize(w: Tensor, group_size: int) -> Tensor:
        scale, zero = optimize_intx_qparams(w, bits=bits, group_size=group_size)
        codes = quantize_intx(w, scale, zero, bits=bits, group_size=group_size)
        return dequantize_intx(codes, scale, zero, bits=bits, group_size=group_size)

    return quantize


QUANTIZERS: dict[str, Quantizer] = {
    "int8": through_int8,
    **{f"{mapping} {b}": through_intx(b, mapping) for b in BITS for mapping in MAPPINGS},
    **{f"hqq {b}": through_hqq(b) for b in BITS},
}
every_quantizer = pytest.mark.parametrize("quantize", QUANTIZERS.values(), ids=QUANTIZERS)


@every_quantizer
def test_groups_of_zeros_are_zeros(quantize: Quantizer) -> None:
    w = weight(4, 40)
    w[:, 16:32] = 0
    w[3] = -0.0
    back = quantize(w, 16)
    assert back.isfinite().all()
    assert (back[:, 16:32] == 0).all() and (back[3] == 0).all()


@every_quantizer
def test_subnormal_groups_stay_finite_and_small(quantize: Quantizer) -> None:
    w = torch.tensor([[1e-45, -1e-45, 0, 0], [1e-39, 1e-40, -1e-42, 0], [1.1e-38, -9e-39, 0, 0]])
    w = torch.cat((w, w * 2**20), 1)
    back = quantize(w, 4)
    assert back.isfinite().all()
    assert (back[:, :4].abs() <= 2 * TINY).all()


@every_quantizer
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_non_finite_groups_are_nan_and_no_others(quantize: Quantizer, value: float) -> None:
    w = weight(5, 40)
    expected = quantize(w, 16)
    w[2, 20] = value
    w[4, 35] = value
    back = quantize(w, 16)
    touched = torch.zeros(5, 40, dtype=torch.bool)
    touched[2, 16:32] = touched[4, 32:] = True
    assert back[touched].isnan().all()
    assert torch.equal(back[~touched], expected[~touched])


@every_quantizer
def test_a_ragged_last_group_is_a_group(quantize: Quantizer) -> None:
    w = weight(6, 44)
    assert torch.equal(quantize(w, 16), torch.cat([quantize(p, 16) for p in w.split(16, -1)], -1))
    assert torch.equal(quantize(w, 100), quantize(w, 44))


@every_quantizer
def test_rows_strides_and_chunks_do_not_matter(
    quantize: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = weight(12, 40)
    expected = quantize(w, 16)
    assert torch.equal(quantize(w.t().contiguous().t(), 16), expected)
    assert torch.equal(quantize(w.reshape(3, 4, 40), 16), expected.reshape(3, 4, 40))
    assert torch.equal(quantize(w[5], 16), expected[5])
    assert torch.equal(quantize(w[3:4], 16), expected[3:4])
    monkeypatch.setattr(numerics, "CHUNK", 100)
    assert torch.equal(quantize(w, 16), expected)


@every_quantizer
def test_empty_and_meta(quantize: Quantizer) -> None:
    for shape in ((0, 40), (3, 0), (0, 0), (2, 0, 16)):
        assert quantize(torch.zeros(shape), 16).shape == shape
        assert quantize(torch.zeros(shape), shape[-1]).shape == shape
    back = quantize(torch.empty(3, 40, device="meta"), 16)
    assert back.is_meta and back.shape == (3, 40)


@every_quantizer
def test_large_weights(quantize: Quantizer) -> None:
    """Nothing overflows up to 2**126, half of the largest power of two."""
    w = weight(3, 32)
    w = w / w.abs().amax(-1, keepdim=True) * 2.0**126
    assert quantize(w, 16).isfinite().all()
    assert quantize(-w, 16).isfinite().all()
