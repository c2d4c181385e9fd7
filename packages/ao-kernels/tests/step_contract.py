"""What is checked of every kernel that takes a step of an optimizer, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_samples import (
    Options,
    adam_arguments,
    assert_close_parameters,
    assert_same_state,
    copied,
)

from ao_kernels import force
from ao_kernels.ops import adam_step

FORMATS = (("8", 256), ("4", 128), ("fp8", 256), ("32", 256))
DITHERED = (*((bits, n, False) for bits, n in FORMATS), ("4", 128, True))
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
CASES = [
    *(Options(state_bits=bits, block_size=n) for bits, n in FORMATS),
    *(
        Options(state_bits=bits, block_size=n, dtype=bf16, grad_dtype=bf16, amsgrad=True)
        for bits, n in FORMATS
    ),
    Options(decoupled=False, maximize=True, dtype=f16, grad_dtype=f32),
    Options(decoupled=False, dtype=f32, grad_dtype=bf16, block_size=64),
    Options(state_bits="4", block_size=32, dtype=bf16, grad_dtype=f16, maximize=True),
    Options(dtype=bf16, grad_dtype=bf16, stochastic=True),
    Options(state_bits="32", dtype=bf16, grad_dtype=f32, stochastic=True, decoupled=False),
    Options(state_bits="4", block_size=128, dtype=bf16, grad_dtype=bf16, stochastic=True),
    *(
        Options(state_bits="4", block_size=n, dithered=True, **more)
        for n, more in (
            (128, {}),
            (32, {"dtype": bf16, "grad_dtype": bf16, "amsgrad": True, "stochastic": True}),
            (256, {"dtype": f16, "grad_dtype": f16, "decoupled": False}),
        )
    ),
]


# Those of them whose dtypes the CUDA kernels have not been compiled for.
OTHER_PAIRS = [c for c in CASES if f16 in (c.dtype, c.grad_dtype) and c.dtype != c.grad_dtype]


def name_of(options: Options) -> str:
    plain = Options()
    found = [f"{options.state_bits}-{options.block_size}"]
    for field in (
        "dtype",
        "grad_dtype",
        "amsgrad",
        "decoupled",
        "maximize",
        "stochastic",
        "dithered",
    ):
        if getattr(options, field) != getattr(plain, field):
            found.append(f"{field}={getattr(options, field)}".replace("torch.", ""))
    return ",".join(found)


class Steps:
    """``op`` by ``backend`` on ``device`` against the reference on the CPU."""

    op: Any = adam_step
    arguments = staticmethod(adam_arguments)
    scales = 5  # the place of those of exp_avg among the arguments
    backend = "cpu"
    device = "cpu"
    wrong = (5, 700, 2999)  # elements that NaN, inf and -inf there make NaN
    ulps = 0.0  # of the update, that parameters may be off

    def run(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = copied(args, self.device)
        before = force(self.backend)
        try:
            assert self.op(*given) is None
        finally:
            force(before)
        return given

    def check(self, args: tuple[Any, ...], ulps: float | None = None) -> tuple[Any, ...]:
        expected = copied(args)
        self.op.reference(*expected)
        found = self.run(args)
        assert_same_state(found, expected)
        ulps = self.ulps if ulps is None else ulps
        if args[-2] and ulps:  # rounded stochastically: a last place may move the one in 65536
            ulps = 1e4
        assert_close_parameters(found, expected, args, ulps)
        return found

    @pytest.mark.parametrize("options", CASES, ids=name_of)
    def test_steps(self, options: Options) -> None:
        self.check(self.arguments(options))

    @pytest.mark.parametrize(("bits", "block_size", "dithered"), DITHERED)
    def test_nan_and_inf(self, bits: str, block_size: int, dithered: bool) -> None:
        """The block of a moment is NaN, its codes zero, and the element's parameter NaN."""
        more = {"dithered": dithered, "shapes": ((3000,), (64,))}
        options = Options(state_bits=bits, block_size=block_size, **more)
        args = self.arguments(options)
        for place, value in ((5, torch.nan), (700, torch.inf), (2999, -torch.inf)):
            args[1][0][place] = value
        found = self.check(args)
        wrong = found[0][0].cpu().isnan().nonzero().flatten().tolist()
        assert tuple(wrong) == self.wrong
        assert found[0][1].isfinite().all()
        if bits != "32":
            nan = found[self.scales][0].isnan()
            assert nan.sum() == 3
            codes = found[2][0][nan].view(torch.uint8)
            assert (codes == 0).all()

    @pytest.mark.parametrize(("bits", "block_size", "dithered"), DITHERED)
    def test_zeros_and_extremes(self, bits: str, block_size: int, dithered: bool) -> None:
        """Blocks of zeros, of the smallest numbers, and of the largest whose squares are finite."""
        more = {"dithered": dithered, "shapes": ((5, 256),)}
        args = self.arguments(Options(state_bits=bits, block_size=block_size, **more))
        args[1][0] *= torch.tensor([0.0, 1e-38, 1e-30, 1e-18, 1e19])[:, None]
        for place in range(2, 2 * self.scales - 2):
            for x in args[place]:
                if place < self.scales:
                    x.view(torch.uint8).zero_()
                else:
                    x.fill_(torch.finfo(torch.float32).tiny)
        self.check(args)

    def test_views_and_steps_in_a_row(self) -> None:
        """Addresses that are no multiples of 16, strides, and the second step from the first."""
        options = Options(shapes=((33, 130), (2048,)), dtype=bf16, grad_dtype=bf16)
        args = self.arguments(options)
        args[0][0] = args[0][0].t().contiguous().t()
        args[1][1] = torch.cat((args[1][1][:1], args[1][1]))[1:]
        expected, found = copied(args), copied(args, self.device)
        # copied() makes tensors of their own: cut the views there
        found[1][1] = torch.cat((found[1][1][:1], found[1][1]))[1:]
        before = force(self.backend)
        try:
            for _ in range(3):
                self.op.reference(*expected)
                self.op(*found)
                if self.ulps:  # else what follows would start from other parameters
                    for p, q in zip(found[0], expected[0], strict=True):
                        p.copy_(q)
        finally:
            force(before)
        assert_same_state(found, expected)
        assert_close_parameters(found, expected, args, self.ulps)
        assert found[0][0].stride() == (1, 33)

    def test_versions_are_counted(self) -> None:
        """autograd must see that parameters have changed."""
        args = copied(self.arguments(Options(shapes=((4096,), (3,)))), self.device)
        versions = [p._version for p in args[0]]
        before = force(self.backend)
        try:
            self.op(*args)
        finally:
            force(before)
        assert all(p._version > v for p, v in zip(args[0], versions, strict=True))
