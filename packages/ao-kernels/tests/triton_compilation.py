"""Compiles for any NVIDIA GPU, without one, the Triton kernels that calls of an op launch.

The launches are recorded by running a kernel's host code on CPU tensors, with launchers that note
their arguments in place of the compiled kernels.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

ARCHITECTURES = (80, 90)

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int64: "i64",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "u8",
    torch.float8_e5m2: "u8",
    torch.float8_e8m0fnu: "u8",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
# Modules that launch kernels for several ops.
_SHARED = (
    "directions",
    "experts",
    "float8_product",
    "grouped_product",
    "int4_linear",
    "int8_dynamic_linear",
    "partials",
    "peaks",
    "quantize_block",
    "quantize_rowwise",
    "quantize_tensorwise",
    "weight_only",
)


@dataclass(frozen=True)
class Launch:
    """A kernel compiled for one launch."""

    name: str
    ptx: str
    shared_bytes: int
    cubin: bytes

    def inexact_arithmetic(self) -> list[str]:
        """Instructions that are not IEEE ones, but reciprocals: those are of numbers that are not
        subnormal, nor is what they give, and an approximate one is rounded by two fused operations.
        """
        known = ("rcp.rn.ftz.f32", "rcp.approx.ftz.f32")
        lines = [
            line.strip() for line in self.ptx.splitlines() if not line.lstrip().startswith("//")
        ]
        odd = [line for line in lines if re.search(r"\.ftz|\.approx|div\.full", line)]
        return [line for line in odd if not line.startswith(known)]

    def stack_pointers_as_data(self) -> list[str]:
        """Instructions that take bits of R1, the stack pointer, for data: ptxas (of triton 3.6, for
        sm_90) put it where it had lost a value."""
        from triton.tools.disasm import get_sass

        data = re.compile(r"\b(LOP3|PRMT|F2FP|SHF|SEL|FMUL|FFMA)\b.*[ ,]R1(\.\w+)?[ ,;]")
        return [line for line in get_sass(self.cubin).splitlines() if data.search(line)]

    def registers_never_set(self) -> list[str]:
        """Conversions to float8 that keep half of a register which no instruction before them
        wrote: the same ptxas leaves out one of several conversions that it knows to be equal."""
        from triton.tools.disasm import get_sass

        instruction = re.compile(r"\b([A-Z][A-Z0-9]*(?:\.[A-Z0-9_]+)*)\s+([^;]*);")
        written: set[int] = set()
        found = []
        for line in get_sass(self.cubin).splitlines():
            match = instruction.search(line)
            if not match:
                continue
            name, operands = match[1], [operand.strip() for operand in match[2].split(",")]
            kept = re.match(r"R(\d+)\b", operands[-1])
            if name.startswith("F2FP") and kept and int(kept[1]) not in written:
                found.append(line)
            # The first operand that is no predicate is written: by stores, too, which does no harm.
            target = next((o for o in operands if not re.fullmatch(r"U?P[T\d]", o)), "")
            if first := re.fullmatch(r"R(\d+)", target):
                wide = 4 if ".128" in name else 2 if ".64" in name or "WIDE" in name else 1
                written.update(range(int(first[1]), int(first[1]) + wide))
        return found


class _Recorder:
    """Stands for a jitted kernel: notes what it would be launched with."""

    def __init__(
        self, kernel: Any, noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]
    ) -> None:
        self.kernel, self.noted = kernel, noted

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.noted.append((self.kernel, args, kwargs))


def compiled_launches(
    op: str,
    calls: list[tuple[Any, ...]],
    architecture: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    run: str = "_run",
) -> Iterator[Launch]:
    """The launches of ``calls`` of ao_kernels.triton.<op>.<run>, each compiled for
    sm_<architecture>."""
    import triton

    from ao_kernels.triton import codes, launch

    noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    modules = [importlib.import_module(f"ao_kernels.triton.{name}") for name in (op, *_SHARED)]
    with monkeypatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, triton.runtime.JITFunction):
                    patch.setattr(module, name, _Recorder(value, noted))
                elif isinstance(value, launch.Plans):
                    patch.setattr(module, name, launch.Plans())
        patch.setattr(codes, "converts_float8", lambda _: architecture >= 89)
        for call in calls:
            getattr(modules[0], run)(*call)
    assert len(noted) >= len(calls)
    seen = set()
    for kernel, args, kwargs in noted:
        launch = _signature(kernel, args, kwargs)
        key = (kernel.__name__, str(launch))
        if key not in seen:
            seen.add(key)
            yield _compile(kernel, *launch, architecture)


def _signature(
    kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any], list[str], dict[str, Any]]:
    """Types and constants by name, the names of arguments divisible by 16, and options."""
    given = dict(zip(kernel.arg_names, args, strict=False))
    given.update({name: value for name, value in kwargs.items() if name not in _OPTIONS})
    options = {name: value for name, value in kwargs.items() if name in _OPTIONS}
    assert list(given) == kernel.arg_names, "a launch gives arguments in another order"
    types, constants, aligned = {}, {}, []
    for parameter in kernel.params:
        value = given[parameter.name]
        if isinstance(value, Tensor):
            types[parameter.name] = "*" + _TYPES[value.dtype]
            aligned.append(parameter.name)
        elif (
            parameter.is_constexpr
            or value is None
            or (value == 1 and not parameter.do_not_specialize)
        ):
            types[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(parameter.name)
    return types, constants, aligned, options


def _compile(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    aligned: list[str],
    options: dict[str, Any],
    architecture: int,
) -> Launch:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    done = triton.compile(source, target=target, options=options)
    return Launch(kernel.__name__, done.asm["ptx"], done.metadata.shared, done.asm["cubin"])
