"""lion_step: every kernel has the bits of the reference, in moments and parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from step_contract import CASES, OTHER_PAIRS, Steps, name_of
from step_samples import Options, assert_same_state, copied, lion_arguments

from ao_kernels import cpu
from ao_kernels.ops import lion_step


class Lion(Steps):
    op = lion_step
    arguments = staticmethod(lion_arguments)
    scales = 3
    wrong = (5,)  # the sign of inf is a number


@pytest.fixture(params=cpu.available_isas() or ["none"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "none":
        pytest.skip(cpu.unavailable)
    before = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


@pytest.mark.usefixtures("isa")
class TestCpu(Lion):
    pass


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of NaN, in numpy
class TestInterpreted(Lion):
    backend = "triton"


@pytest.mark.gpu
class TestTriton(Lion):
    backend = "triton"
    device = "cuda"


@pytest.mark.gpu
class TestCuda(Lion):
    backend = "cuda"
    device = "cuda"

    @pytest.mark.parametrize("options", [c for c in CASES if c not in OTHER_PAIRS], ids=name_of)
    def test_steps(self, options: Options) -> None:
        self.check(self.arguments(options))


def test_the_sign_moves_and_decay_shrinks() -> None:
    """One parameter in numbers: lr 1/4, weight decay 1/2, betas 1/2 and 3/4."""
    from ao_kernels.ops.lion_step import lion_scalars

    scalars = lion_scalars(1, lr=0.25, betas=(0.5, 0.75), weight_decay=0.5)
    p, g = torch.tensor([1.0, 1.0, 1.0, 8.0]), torch.tensor([1.0, -3.0, -1.0, 0.0])
    m = torch.tensor([0.0, 0.0, 1.0, 0.0])
    lion_step([p], [g], [m], [], scalars, "32", 256)
    assert p.tolist() == [0.625, 1.125, 0.875, 7.0]
    assert m.tolist() == [0.25, -0.75, 0.5, 0.0]


def test_in_the_dispatcher() -> None:
    args = copied(lion_arguments(Options(shapes=((4096,), (33,)))))
    expected = copied(args)
    lion_step.reference(*expected)
    lion_step.overload(*args)
    assert_same_state(args, expected, first=0)


@pytest.mark.triton
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_compilation import compiled_launches

    options = Options(dtype=torch.bfloat16, grad_dtype=torch.bfloat16, shapes=((4096,), (77,)))
    calls = [lion_arguments(options)]
    for launch in compiled_launches("lion_step", calls, architecture, monkeypatch):
        assert ".local" not in launch.ptx
