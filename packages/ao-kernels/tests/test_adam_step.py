"""adam_step: its kernels on CPUs and NVIDIA GPUs against the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from step_contract import CASES, OTHER_PAIRS, Steps, name_of
from step_samples import Options, adam_arguments, assert_same_state, copied

from ao_kernels import cpu
from ao_kernels.ops import adam_step
from ao_kernels.ops.adam_step import adam_scalars


@pytest.fixture(params=cpu.available_isas() or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "none":
        pytest.skip(cpu.unavailable)
    before = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


@pytest.mark.usefixtures("isa")
class TestCpu(Steps):
    """Every instruction set gives the same bits, moments and parameters."""

    @pytest.mark.parametrize("block_size", [8, 24, 40, 1000, 4096])
    def test_blocks_of_any_size(self, block_size: int) -> None:
        for bits, dithered in (("8", False), ("4", False), ("4", True), ("fp8", False)):
            options = Options(state_bits=bits, block_size=block_size, dithered=dithered)
            self.check(adam_arguments(options))

    @pytest.mark.parametrize("offset", [0, 7, (1 << 33) - 100, (1 << 33) - 101, (1 << 40) + 1])
    def test_random_bits_of_any_place(self, offset: int) -> None:
        """Odd ones, and where the low word of a pair's index begins anew."""
        for block_size in (256, 8):
            args = adam_arguments(
                Options(dtype=torch.bfloat16, stochastic=True, block_size=block_size)
            )
            self.check((*args[:-1], [offset] * len(args[0])))

    @pytest.mark.parametrize("stochastic", [False, True])
    def test_parameters_below_the_normal_numbers(self, stochastic: bool) -> None:
        """Instructions that convert to bfloat16 take them for zeros."""
        args = adam_arguments(
            Options(dtype=torch.bfloat16, stochastic=stochastic, shapes=((1000,), (16,)))
        )
        for x, g in zip(args[0], args[1], strict=True):
            x[::3] *= 2.0**-130
            g[::3] = 0.0
            for state in (args[2], args[3]):
                for codes in state:
                    codes.zero_()
        found = self.run(args)
        assert any(((p != 0) & (p.abs() < 2.0**-126)).any() for p in found[0])
        self.check(args)

    def test_any_number_of_threads(self) -> None:
        args = adam_arguments(Options(shapes=((300, 1024), (5,), (77, 512))))
        threads = torch.get_num_threads()
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(self.run(args))
        torch.set_num_threads(threads)
        assert_same_state(*found, first=0)


@pytest.mark.gpu
class TestCuda(Steps):
    """The CUDA kernel; roots and quotients of the parameters' updates are approximate there."""

    backend = "cuda"
    device = "cuda"
    ulps = 4.0

    @pytest.mark.parametrize("options", [c for c in CASES if c not in OTHER_PAIRS], ids=name_of)
    def test_steps(self, options: Options) -> None:
        self.check(self.arguments(options))

    @pytest.mark.parametrize("options", OTHER_PAIRS, ids=name_of)
    def test_other_pairs_of_dtypes_go_to_triton(self, options: Options) -> None:
        args = copied(adam_arguments(options), "cuda")
        assert adam_step.choice(*args).kernel == "triton"
        assert "the CUDA kernels take" in adam_step.why_not(*args)["cuda"]

    def test_large_lists_with_full_state_go_to_triton(self) -> None:
        for numel, kernel in ((1 << 24, "cuda"), ((1 << 24) + 1, "triton")):
            options = Options(state_bits="32", shapes=((numel,),))
            args = copied(adam_arguments(options), "cuda")
            assert adam_step.choice(*args).kernel == kernel

    def test_more_parameters_than_a_launch_takes(self) -> None:
        self.check(adam_arguments(Options(shapes=((300,),) * 501)))

    def test_in_a_graph(self) -> None:
        """Addresses and scalars are arguments of the kernel: a captured step repeats itself."""
        args = copied(adam_arguments(Options(dtype=torch.bfloat16)), "cuda")
        expected = copied(args, "cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            adam_step(*copied(args, "cuda"))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            adam_step(*args)
        for _ in range(3):
            graph.replay()
            adam_step(*expected)
        torch.cuda.synchronize()
        for place in (0, 2, 3, 5, 6):
            for x, y in zip(args[place], expected[place], strict=True):
                assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def test_scalars_of_tensors_are_those_of_numbers() -> None:
    given = {"lr": 0.25, "betas": (0.875, 0.5), "eps": 1e-8, "weight_decay": 0.125}
    as_tensors = {
        "lr": torch.tensor(0.25),
        "betas": (torch.tensor([0.875]), 0.5),
        "eps": 1e-8,
        "weight_decay": torch.tensor(0.125),
    }
    for decoupled in (True, False):
        expected = adam_scalars([1.0, 4.0, 1.0], decoupled=decoupled, **given)
        assert torch.equal(
            adam_scalars([1.0, 4.0, 1.0], decoupled=decoupled, **as_tensors), expected
        )
        assert expected.shape == (3, 8) and torch.equal(expected[0], expected[2])
    decay, beta1, rest1, beta2, rest2, correction, eps, size = expected[1].tolist()
    assert (decay, beta1, rest1, beta2, rest2, eps) == (0.125, 0.875, 0.125, 0.5, 0.5, 1e-8)
    assert correction == pytest.approx((1 - 0.5**4) ** -0.5) and size == 0.25 / (1 - 0.875**4)


def test_a_scale_of_gradients_is_in_their_factors() -> None:
    options = Options(state_bits="32", shapes=((40, 50),))
    args, scaled = adam_arguments(options), adam_arguments(options)
    given = {"lr": 0.25, "betas": (0.875, 0.5), "eps": 1e-8, "weight_decay": 0.125}
    plain = adam_scalars([2.0], decoupled=True, **given)
    factors = adam_scalars([2.0], decoupled=True, gradient_scale=0.125, **given)
    adam_step(args[0], [0.125 * args[1][0]], *args[2:8], plain, *args[9:])
    adam_step(*scaled[:8], factors, *scaled[9:])
    for place in (0, 2, 3):  # a power of two: the same bits
        assert torch.equal(args[place][0], scaled[place][0])
    with pytest.raises(ValueError, match="Adam adds weight decay to gradients"):
        adam_scalars([2.0], decoupled=False, gradient_scale=0.125, **given)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (1, lambda a: a[1][:-1], "6 parameters, but 5 grads"),
        (6, lambda a: [], "6 parameters, but 0 exp_avg_sq_scale"),
        (9, lambda a: "5", "state_bits is one of 8, 4, fp8, 32, got '5'"),
        (10, lambda a: 12, "block_size is a multiple of 8, got 12"),
        (8, lambda a: a[8][:, :7], "scalars is (6, 8) float64"),
        (13, lambda a: [1] * 6, "dithers are one a parameter with state_bits '4', or none; got 6"),
        (14, lambda a: [1], "6 parameters, but 1 keys"),
        (2, lambda a: [x[:-1] for x in a[2]], "exp_avg 0 is (8, 256) torch.uint8"),
        (1, lambda a: [x.double() if i else x for i, x in enumerate(a[1])], "number 1 is"),
        (1, lambda a: [x.flatten()[None, None] for x in a[1]], "the gradient of number 0 is"),
        (0, lambda a: [x.long() for x in a[0]], "number 0 is torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(place: int, change: object, message: str) -> None:
    args = list(copied(adam_arguments(Options())))
    before = [x.clone() for x in args[0]]
    args[place] = change(args)  # type: ignore[operator]
    with pytest.raises((TypeError, ValueError)) as error:
        adam_step(*args)
    assert message in str(error.value)
    if place:
        assert all(torch.equal(x, y) for x, y in zip(args[0], before, strict=True))


def test_float64_takes_the_reference() -> None:
    args = adam_arguments(Options(dtype=torch.float64, grad_dtype=torch.float64, state_bits="32"))
    expected = copied(args)
    adam_step.reference(*expected)
    found = copied(args)
    adam_step(*found)
    for x, y in zip(found[0], expected[0], strict=True):
        assert torch.equal(x, y)
    assert "float64" in adam_step.why_not(*args).get("cpu", "float64")


def test_a_dither_is_of_both_moments_alone() -> None:
    """With one the other tensors have the same bits; some of their codes are one apart."""
    options = Options(state_bits="4", block_size=128, amsgrad=True, shapes=((256, 128),))
    plain, dithered = (copied(adam_arguments(options)) for _ in range(2))
    adam_step(*plain)
    adam_step(*dithered[:13], [0x12345678], *dithered[14:])
    for place in (0, 4, 7):
        assert torch.equal(plain[place][0], dithered[place][0]), place
    moved = []
    for place, signed in ((2, True), (3, False)):
        values = []
        for args in (plain, dithered):
            both = args[place][0]
            code = torch.stack((both & 15, both >> 4), -1).flatten().int()
            values.append(torch.where(code > 7, -(code - 8), code) if signed else code)
        apart = (values[0] - values[1]).abs()
        assert apart.max() == 1 and 0.005 < apart.float().mean() < 0.5
        moved.append(apart > 0)
    assert not torch.equal(*moved)  # each moment has words of its own
    for place in (5, 6):
        torch.testing.assert_close(dithered[place][0], plain[place][0], rtol=2.0**-20, atol=0)
    with pytest.raises(ValueError, match="got 2 for 1 parameters"):
        adam_step(*dithered[:13], [1, 2], *dithered[14:])


def test_no_parameters() -> None:
    scalars = torch.empty(0, 8, dtype=torch.float64)
    assert adam_step([], [], [], [], [], [], [], [], scalars, "8", 256) is None


@pytest.mark.parametrize(
    "options",
    [
        Options(shapes=((4096,), (33,))),
        Options(state_bits="4", block_size=128, dithered=True, shapes=((4096,), (33,))),
    ],
    ids=name_of,
)
def test_in_the_dispatcher(options: Options) -> None:
    """Schema and fake agree with what the op does, also where it is called as torch.ops.ao."""
    args = copied(adam_arguments(options))
    expected = copied(args)
    adam_step.reference(*expected)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(adam_step.overload, copied(args), test_utils=checks)
    adam_step.overload(*args)
    assert_same_state(args, expected, first=0)
