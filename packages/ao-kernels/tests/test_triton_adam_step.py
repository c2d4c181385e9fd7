"""The Triton kernel of adam_step: in the interpreter, compiled, and on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_contract import Steps
from step_samples import Options, adam_arguments, copied, lion_arguments

from ao_kernels import force
from ao_kernels.ops import adam_step, lion_step
from ao_kernels.ops.adam_step import adam_scalars


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of NaN, in numpy
class TestInterpreted(Steps):
    backend = "triton"


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "options",
    [
        Options(dtype=torch.bfloat16, amsgrad=True, stochastic=True),
        Options(state_bits="32", grad_dtype=torch.bfloat16),
        Options(state_bits="4", block_size=32, stochastic=True),
        Options(state_bits="4", block_size=32, dithered=True),
    ],
)
@pytest.mark.parametrize("op", [adam_step, lion_step])
def test_the_compiled_table_is_that_of_python(
    op: Any, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows without elements aside; and what the direct entry leaves to `run`."""
    from ao_kernels.triton import steps

    launched: list[Any] = []
    monkeypatch.setattr(steps, "_launch", lambda *args: launched.append(args))
    args = adam_arguments(options) if op is adam_step else lion_arguments(options)
    before = force("triton")
    try:
        op.overload(*copied(args))  # loads the kernels
        kernel = next(each for each in op.kernels if each.name == "triton")
        launched.clear()
        kernel.run(*args)
        assert kernel.direct is not None and kernel.direct(0, *args) is None
    finally:
        force(before)
    (_, expected, *others), (_, found, *same) = launched
    rows = expected[:, 0] > 0
    assert rows.sum() == len(args[0]) - 1 and torch.equal(found[rows], expected[rows])
    assert (found[~rows] == 0).all()
    assert all(x is y or x == y for x, y in zip(others, same, strict=True))
    turned = list(args)
    turned[0] = [x.t().contiguous().t() if x.ndim == 2 else x for x in args[0]]
    assert kernel.direct(0, *turned) is NotImplemented
    if options.state_bits == "8":
        place = 10 if op is adam_step else 6
        assert kernel.direct(0, *args[:place], 24, *args[place + 1 :]) is NotImplemented
    assert kernel.direct(0, *args[:-2]) is NotImplemented and len(launched) == 2


@pytest.mark.gpu
class TestOnGpu(Steps):
    backend = "triton"
    device = "cuda"
    ulps = 4.0  # of the approximate root and quotient

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
    def test_the_host_does_not_wait(self) -> None:
        """Not even for hyperparameters on the device."""
        shapes = ((300, 256), (77,))
        args = list(copied(adam_arguments(Options(shapes=shapes)), "cuda"))
        lr = torch.tensor(1e-3, device="cuda")
        adam_step(*args)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in (4.0, 5.0):
                args[8] = adam_scalars(
                    [step, step + 1],
                    lr=lr,
                    betas=(0.9, lr + 0.99),
                    eps=1e-8,
                    weight_decay=0.1,
                    decoupled=True,
                )
                adam_step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert args[0][0].isfinite().all()

    def test_many_steps_ahead_of_the_device(self) -> None:
        """Addresses and scalars of a step stay until the device has read them."""
        options = Options(shapes=((1 << 22,), *((4096,),) * 40), dtype=torch.bfloat16)
        args = copied(adam_arguments(options))
        ahead, behind = copied(args, "cuda"), copied(args, "cuda")
        rows = [
            adam_scalars(
                [float(step)] * 41,
                lr=1e-2 / step,
                betas=(0.9, 0.99),
                eps=1e-8,
                weight_decay=0.1,
                decoupled=True,
            )
            for step in range(1, 40)
        ]
        for each in rows:
            adam_step(*behind[:8], each, *behind[9:])
            torch.cuda.synchronize()
        torch.cuda._sleep(100_000_000)
        for each in rows:
            adam_step(*ahead[:8], each, *ahead[9:])
        for place in (0, 2, 3, 5, 6):
            for x, y in zip(ahead[place], behind[place], strict=True):
                assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


@pytest.mark.triton
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_compilation import compiled_launches

    shapes: dict[str, Any] = {"shapes": ((4096,), (77,))}
    options = [
        Options(state_bits=bits, block_size=n, dtype=torch.bfloat16, grad_dtype=g, **shapes)
        for bits, n, g in (
            ("8", 256, torch.bfloat16),
            ("4", 128, torch.float32),
            ("fp8", 256, torch.bfloat16),
            ("32", 256, torch.bfloat16),
        )
    ]
    options.append(Options(dtype=torch.bfloat16, stochastic=True, amsgrad=True, **shapes))
    options.append(Options(state_bits="4", block_size=128, dithered=True, **shapes))
    calls = [adam_arguments(each) for each in options]
    for launch in compiled_launches("adam_step", calls, architecture, monkeypatch):
        assert launch.shared_bytes <= 48 << 10
        assert ".local" not in launch.ptx
