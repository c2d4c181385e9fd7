"""int4_linear against its float64 reference, on every instruction set of this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_samples import isa_variants, magnitude_intx, sample_intx
from torch import Tensor

from ao_core.packing import pack, unpack
from ao_core.testing.op_contract import OpContract, Sample
from ao_kernels.ops import int4_linear, layout


class TestInt4Linear(OpContract):
    op = int4_linear
    variants = staticmethod(isa_variants)

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        for name, x, codes, scale, zero, group_size, bias in sample_intx(4, dtype):
            yield Sample(name, (x, codes, scale, zero, group_size, bias))

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        x, codes, scale, zero, group_size, bias = args
        return magnitude_intx(x, codes, scale, zero, 4, group_size, bias)


def test_every_code_in_every_place() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(16)[None]
    packed = pack(codes, 4)
    scale = torch.ones(1, 1)
    x = torch.eye(256)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y = int4_linear(x.to(dtype), packed, scale, None, 256)
        assert torch.equal(y[:, 0], (codes[0].float() - 8).to(dtype))


def test_padding_codes_have_no_influence() -> None:
    K = 20
    packed = pack(torch.randint(0, 16, (8, K), dtype=torch.uint8), 4)
    x, scale = torch.randn(3, K).bfloat16(), torch.rand(8, 1).bfloat16()
    y = int4_linear(x, packed, scale, None, K)
    dirty = packed.clone()
    dirty[:, K // 2 :] = 0xFF
    assert torch.equal(int4_linear(x, dirty, scale, None, K), y)
    assert torch.equal(unpack(dirty, 4, K), unpack(packed, 4, K))


def test_refusals_are_in_the_callers_words() -> None:
    packed = pack(torch.zeros(8, 32, dtype=torch.uint8), 4)
    x, scale = torch.randn(3, 32), torch.ones(8, 1)
    with pytest.raises(ValueError, match="32 input features of 4 bits take 16"):
        int4_linear(x, packed[:, :8], scale, None, 32)
    with pytest.raises(ValueError, match="group_size is 12"):
        int4_linear(x, packed, scale, None, 12)
    with pytest.raises(ValueError, match=r"take \(8, 2\)"):
        int4_linear(x, packed, scale, None, 16)
    with pytest.raises(TypeError, match="float32"):
        int4_linear(x.int(), packed, scale, None, 32)
    with pytest.raises(ValueError, match="zero is"):
        int4_linear(x, packed, scale, torch.zeros(1, 1), 32)
    with pytest.raises(ValueError, match="bias has shape"):
        int4_linear(x, packed, scale, None, 32, torch.zeros(7))


def test_float64_runs_the_reference_and_says_so() -> None:
    packed = pack(torch.randint(0, 16, (8, 32), dtype=torch.uint8), 4)
    args = (torch.randn(3, 32).double(), packed, torch.rand(8, 1), None, 32)
    assert torch.equal(int4_linear(*args), int4_linear.reference(*args))
    assert "float64" in int4_linear.why_not(*args)["cpu"]


def test_dequantization_expands_ragged_groups() -> None:
    codes = torch.randint(0, 16, (2, 40), dtype=torch.uint8)
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    w = layout.dequantize_intx(
        pack(codes, 4), scale, None, bits=4, group_size=32, length=40, dtype=torch.float32
    )
    per_code = torch.cat((scale[:, :1].expand(2, 32), scale[:, 1:].expand(2, 8)), 1)
    assert torch.equal(w, (codes.float() - 8) * per_code)
