"""Which of the kernels that take a call on a GPU is the fastest, by the table of the GPU.

What :mod:`ao_kernels.registry` asks :mod:`ao_kernels.tuned`. Where no table knows a call, there is
no answer, and the registry takes the first kernel that supports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ao_kernels import tuned

if TYPE_CHECKING:
    from ao_kernels.kernel import Kernel

__all__ = ["Asked", "Choice", "choice", "fastest", "most_tokens", "slower", "table_and_call"]


class Choice(NamedTuple):
    """Which kernel takes a call, by name ("reference": plain torch), and how its measured time
    compares with that of an unquantized layer; None where no table can tell."""

    kernel: str
    measured: tuned.Comparison | None

    @property
    def warning(self) -> str:
        """Where bfloat16 would be faster: that, and by how much. Else empty."""
        found = self.measured
        slow = found is not None and found.other_us < found.us
        return f"bf16 would be faster: {found}" if slow else ""


def choice(
    op: str, parameters: Sequence[str], kernel: Kernel | None, args: Sequence[Any]
) -> Choice:
    """What is known about the kernel that takes a call; None: the reference."""
    name = "reference" if kernel is None else kernel.name
    found = table_and_call(parameters, args)
    return Choice(name, found and found[0].compare(op, found[1], name))


def slower(
    op: str,
    parameters: Sequence[str],
    chosen: Kernel | None,
    able: Sequence[Kernel],
    args: Sequence[Any],
) -> dict[str, str]:
    """What the table has against kernels that could take a call but ``chosen`` took it; and for
    bfloat16, where that is faster."""
    found = table_and_call(parameters, args)
    if found is None or chosen is None:
        return {}
    table, call = found
    reasons = {}
    for kernel in able:
        compared = table.compare(op, call, kernel.name, against=chosen.name)
        if kernel is not chosen and compared is not None:
            reasons[kernel.name] = f"{chosen.name} is taken instead: {compared}"
    against_bf16 = table.compare(op, call, chosen.name)
    if against_bf16 is not None and against_bf16.other_us < against_bf16.us:
        reasons[tuned.BF16] = f"the weight is quantized; bf16 would be faster: {against_bf16}"
    return reasons


def table_and_call(
    parameters: Sequence[str], args: Sequence[Any]
) -> tuple[tuned.Table, tuned.Call] | None:
    """The table that knows about a call, and what it knows it by."""
    if not isinstance(args[0], Tensor):  # a list: such calls have no table
        return None
    table = tuned.table_of(args[0].device)
    call = None if table is None else tuned.call_of(parameters, args)
    return None if table is None or call is None else (table, call)


def fastest(
    op: str,
    parameters: Sequence[str],
    able: Sequence[Kernel],
    most_tokens: int,
    args: Sequence[Any],
) -> Kernel:
    """The fastest of the kernels that take a call; the first where none was measured.

    A kernel whose direct entry may take the call, see :func:`most_tokens`, keeps it.
    """
    found = table_and_call(parameters, args)
    if found is None:
        return able[0]
    table, call = found
    for kernel in able:
        if kernel.few and (not most_tokens or max(kernel.few, most_tokens) >= call.M):
            return kernel
    name = table.fastest(op, call, tuple(kernel.name for kernel in able))
    return next((kernel for kernel in able if kernel.name == name), able[0])


def most_tokens(op: str, kernels: Sequence[Kernel]) -> int:
    """The most tokens that direct entries may take without asking tables, by those of all GPUs of
    this process; 0 for any number."""
    names = [kernel.name for kernel in kernels]
    most = min(
        (
            table.most_tokens(op, kernel.name, names, kernel.few)
            for table in tuned.visible_tables()
            for kernel in kernels
            if kernel.few
        ),
        default=math.inf,
    )
    return 0 if math.isinf(most) else int(most)


class Asked(TorchDispatchMode):
    """Inside ``with Asked() as asked``, calls of ops of this package are answered and not computed:
    ``asked.choices`` has the :class:`Choice` of each, and results are on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Choice] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from ao_kernels.registry import OPS  # it imports this module

        kwargs = kwargs or {}
        op = OPS.get(func._schema.name.removeprefix("ao::"))
        if op is None or func is not op.overload:
            return func(*args, **kwargs)
        self.choices.append(op.choice(*args, **kwargs))
        meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        return func(*meta, **kwargs)
