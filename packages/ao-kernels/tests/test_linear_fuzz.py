"""Random calls of every linear: each kernel that takes a call against the reference in float64.

Grouped linears are not drawn here: test_grouped_linears.py enumerates their calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from float8_samples import multiplied_as_float8
from linear_fuzz import draw
from torch import Tensor

from ao_core.testing.op_contract import OpContract
from ao_kernels import OPS, Op, force, triton

LINEARS = sorted(
    name for name in OPS if name.endswith("_linear") and not name.endswith("_grouped_linear")
)
WEIGHT_ONLY = ("int4_linear", "int8_linear", "intx_linear")
CALLS, INTERPRETED_CALLS, GPU_CALLS, GPU_PARTS = 200, 12, 200, 8


def contract_of(op: Op) -> OpContract:
    """The contract of the op's own test: its sums of absolute values and variants."""
    module = importlib.import_module(f"test_{op.name}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, OpContract) and "op" in vars(each)
    ]
    (contract,) = (each for each in found if each.op is op)
    return contract()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", LINEARS)
def test_random_calls(name: str) -> None:
    op, contract = OPS[name], contract_of(OPS[name])
    taken = set()
    for number in range(CALLS):
        # Threads cost more here than they save: few calls have two.
        torch.set_num_threads(1 if number % 20 else 2)
        words, args = draw(op, number)
        answer = Answer(op, contract, args)
        for label, call in contract._implementations(args):
            answer.check(call(), f"{words}; {label}")
            taken.add(label.rpartition(" ")[2])
    assert {kernel.name for kernel in op.kernels if "cpu" in kernel.devices} <= taken


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of numpy
@pytest.mark.parametrize("name", [name for name in LINEARS if name in triton.KERNELS])
def test_random_calls_in_the_interpreter(name: str) -> None:
    op, contract = OPS[name], contract_of(OPS[name])
    before, n_taken = force("triton"), 0
    try:
        for number in range(INTERPRETED_CALLS):
            words, args = draw(op, number)
            answer = Answer(op, contract, args)
            op.why_not(*args)  # loads the kernels
            for kernel in op.kernels:
                if kernel.backend == "triton" and kernel.supports(*args) is None:
                    answer.check(kernel.run(*args), f"{words}; {kernel.name}")
                    n_taken += 1
    finally:
        force(before)
    assert n_taken > INTERPRETED_CALLS / 2


@pytest.mark.gpu
@pytest.mark.parametrize("part", range(GPU_PARTS))
@pytest.mark.parametrize("name", LINEARS)
def test_random_calls_on_a_gpu(name: str, part: int) -> None:
    """In parts, so that several processes can share what takes minutes: Triton compiles."""
    op, contract = OPS[name], contract_of(OPS[name])
    for number in range(part, GPU_CALLS, GPU_PARTS):
        words, args = draw(op, number, large=True)
        args = tuple(map(moved, args))
        answer = Answer(op, contract, args)
        answer.bound += given_up_on_gpus(op, contract, args)
        for label, call in on_device(op, args):
            answer.check(call(), f"{words}; {label}")


def moved(value: Any) -> Any:
    """The argument on the GPU, strides and alignment kept."""
    if not isinstance(value, Tensor):
        return value
    n_elements = value.untyped_storage().nbytes() // value.element_size()
    whole = value.as_strided((n_elements,), (1,), 0).cuda()
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def on_device(op: Op, args: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    yield "op", lambda: op(*args)
    op.why_not(*args)  # loads the kernels
    for kernel in op.kernels:
        if "cuda" in kernel.devices and kernel.supports(*args) is None:
            yield kernel.name, lambda run=kernel.run: run(*args)


class Answer:
    """What a call should give."""

    def __init__(self, op: Op, contract: OpContract, args: tuple[Any, ...]) -> None:
        self.dtype = args[0].dtype
        self.expected = contract.expected(args)
        self.bound = contract.bound(args, self.expected) + rounding(contract, args)

    def check(self, y: Tensor, where: str) -> None:
        """y is near what it should be, and not finite where that is not."""
        expected, bound = self.expected, self.bound
        assert (y.dtype, y.shape) == (self.dtype, expected.shape), f"{where}: {y.dtype} {y.shape}"
        finite = expected.isfinite()
        assert not y[~finite].isfinite().any(), f"{where}: NaN or inf was lost"
        beyond = expected.abs() + bound > torch.finfo(y.dtype).max  # may round to inf
        wrong = ~((y.double() - expected).abs() <= bound) & finite & ~(beyond & ~y.isfinite())
        assert not wrong.any(), (
            f"{where}: {wrong.sum()} of {wrong.numel()} are wrong, the first {y[wrong][0]:.6g} "
            f"instead of {expected[wrong][0]:.6g}, allowed are {bound[wrong][0]:.2g}"
        )


def rounding(contract: OpContract, args: tuple[Any, ...]) -> Tensor:
    """What float32 sums cost in calls that the contract has no samples of: many groups are added to
    a large bias; and codes near what means 0 are taken as unsigned numbers, less their middle."""
    x, codes, scale, *others = args
    unit = 2.0**-24
    bound = scale.shape[1] * unit * contract.magnitude(args)
    if codes.dtype.is_floating_point:
        return bound
    largest = torch.full_like(codes, torch.iinfo(codes.dtype).max)
    return bound + 4 * unit * contract.magnitude((x, largest, scale, *others))


def given_up_on_gpus(op: Op, contract: OpContract, args: tuple[Any, ...]) -> Tensor | float:
    """What kernels of GPUs give up for speed (docs/numerics.md), beyond the contract's bound."""
    x = args[0]
    M, eps = x.numel() // x.shape[-1], torch.finfo(x.dtype).eps
    if op.name in WEIGHT_ONLY and M > 16 and x.dtype != torch.float32:
        subnormal = torch.finfo(torch.float16).smallest_normal * eps  # two roundings of a half
        return eps * contract.magnitude(args) + subnormal * x.double().abs().sum(-1, keepdim=True)
    if op.name == "float8_linear" and x.dtype == torch.bfloat16:
        rounded = M > 512 or (M > 16 and args[2].shape[1] > 1)  # weights, in blocks of a row
        return eps * contract.magnitude(args) if rounded else 0.0
    fast = op.name in ("float8_dynamic_linear", "float8_static_linear")
    if fast and multiplied_as_float8(x, args[1]):
        return 2.0**-10 * contract.magnitude(args)
    return 0.0


def test_wrong_results_are_found() -> None:
    op, contract = OPS["int4_linear"], contract_of(OPS["int4_linear"])
    _, args = draw(op, 1)
    y = op(*args)
    answer = Answer(op, contract, args)
    answer.check(y, "the result")
    row = tuple(0 for _ in y.shape)
    y[row] += 2 * answer.bound[row] + torch.finfo(y.dtype).eps * y[row].abs()
    with pytest.raises(AssertionError, match="1 of"):
        answer.check(y, "one of them is off")
