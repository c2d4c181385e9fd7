"""What every op must do, as tests to inherit.

A subclass names the op and yields sample calls; pytest then runs every test below on every kernel
that takes the call. The op is anything with the interface of ``ao_kernels.Op``: callable, with
``name``, ``reference``, ``overload``, ``kernels`` (each with ``name``, ``devices``, ``supports``,
``run``) and ``why_not``. Third parties can use it for their own ops.

    class TestInt4Linear(OpContract):
        op = int4_linear
        def samples(self, dtype): yield Sample("g32", (x, codes, scale, None, 32))
        def magnitude(self, args): return x.abs() @ (codes + zero).abs().T
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["OpContract", "Sample"]

_DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)

_OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def _is_float8(t: Tensor) -> bool:
    return t.is_floating_point() and t.element_size() == 1


@dataclass(frozen=True)
class Sample:
    """One call: a name for failure messages and all arguments of the op in order, the activations
    first."""

    name: str
    args: tuple[Any, ...]


class OpContract:
    """Inherit, set ``op``, define ``samples`` and ``magnitude``; override the other hooks where the
    defaults do not fit."""

    op: Any
    has_gradient = True
    rows_are_tokens = True  # (..., K) activations, of which each row gives one row of the result
    # Rounding errors of a float32 sum in any order stay below this, times the sum of absolute
    # values.
    sum_error = 32 * 2.0**-24

    # --- hooks

    def samples(self, dtype: torch.dtype) -> Iterator[Sample]:
        """Calls with activations of ``dtype``; the first is ordinary and small, the others go to
        the corners."""
        raise NotImplementedError

    def magnitude(self, args: tuple[Any, ...]) -> Tensor:
        """Float64, shaped like the result: the sum of the absolute values of all that is added up
        for an element."""
        raise NotImplementedError

    def expected(self, args: tuple[Any, ...]) -> Tensor:
        """The exact result in float64: by default the reference of float64 activations."""
        return self.op.reference(args[0].double(), *args[1:])

    def gradient_reference(self, args: tuple[Any, ...]) -> Tensor:
        """A differentiable float64 computation of the result."""
        return self.op.reference(args[0].double(), *args[1:])

    def variants(self) -> list[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
        """Settings under which every kernel is checked, such as instruction sets."""
        return [("", contextlib.nullcontext)]

    def bound(self, args: tuple[Any, ...], expected: Tensor) -> Tensor:
        """The largest error allowed, elementwise."""
        eps = torch.finfo(self.op.reference(*args).dtype).eps
        tiny = torch.finfo(self.op.reference(*args).dtype).smallest_normal
        return eps * expected.abs() + self.sum_error * self.magnitude(args) + tiny

    def kernel_bound(self, label: str, args: tuple[Any, ...], bound: Tensor) -> Tensor:
        """The same for one implementation, where another that takes these calls rounds more."""
        return bound

    # --- numbers

    @_DTYPES
    def test_every_kernel_matches_the_float64_reference(self, dtype: torch.dtype) -> None:
        n_checked = 0
        for sample in self.samples(dtype):
            expected, like = self.expected(sample.args), self.op.reference(*sample.args)
            bound = self.bound(sample.args, expected)
            for label, call in self._implementations(sample.args):
                y = call()
                where = f"{sample.name}, {label}"
                assert y.dtype == like.dtype and y.shape == like.shape, (
                    f"{where}: {y.dtype} {y.shape}"
                )
                excess = (y.double() - expected).abs()
                excess = excess - self.kernel_bound(label, sample.args, bound)
                assert not (excess > 0).any() and not excess.isnan().any(), (
                    f"{where}: error exceeds its bound by {excess.max():.3g} (|y| up to "
                    f"{expected.abs().max():.3g})"
                )
                n_checked += 1
        assert n_checked, "no sample was checked"

    @_DTYPES
    def test_zero_activations_give_what_the_reference_gives(self, dtype: torch.dtype) -> None:
        x, *others = self._first(dtype)
        self._match((torch.zeros_like(x), *others))

    @_DTYPES
    def test_activations_of_every_rank_and_stride(self, dtype: torch.dtype) -> None:
        x, *others = self._first(dtype)
        source = x.flatten(0, -2) if self.rows_are_tokens else x.flatten()
        tail = source.shape[1:]

        def of(*leading: int) -> Tensor:
            return source[torch.arange(math.prod(leading)).reshape(leading) % len(source)]

        cases = [of(5), of(2, 3), of(2, 1, 2), of(0), of(3, 0), of(1)]
        cases += [of(6)[::2], of(2, 3).transpose(0, 1), of(1).expand(3, *tail)]
        if self.rows_are_tokens:
            wide = torch.randn(3, 2 * tail[0] + 3, device=x.device).to(dtype)
            cases += [of(1)[0], wide[:, 1 : 1 + tail[0]], wide[:, : 2 * tail[0] : 2]]
            cases += [of(4).T.contiguous().T]
        for case in cases:
            self._match((case, *others))

    @_DTYPES
    def test_non_finite_activations_stay_in_their_row(self, dtype: torch.dtype) -> None:
        if not self.rows_are_tokens:
            pytest.skip("the op has no activations")
        x, *others = self._first(dtype)
        for rows in (3, 40):
            clean = x.flatten(0, -2)[torch.arange(rows) % x.flatten(0, -2).shape[0]].contiguous()
            for value in (float("nan"), float("inf"), float("-inf")):
                dirty = clean.clone()
                dirty[1, clean.shape[1] // 2] = value
                expected = self.op.reference(dirty, *others)
                results = zip(
                    self._results((dirty, *others)), self._results((clean, *others)), strict=True
                )
                for (label, y), (_, y_clean) in results:
                    bad = ~expected[1].isfinite()
                    assert not y[1][bad].isfinite().any(), f"{label}: {value} was lost"
                    assert torch.equal(y[0], y_clean[0]) and torch.equal(y[2:], y_clean[2:]), (
                        f"{label}: {value} in one row changed another"
                    )

    @_DTYPES
    def test_strided_weights(self, dtype: torch.dtype) -> None:
        x, *others = self._first(dtype)
        strided = [
            torch.stack((t, t), dim=-1)[..., 0] if isinstance(t, Tensor) else t for t in others
        ]
        self._match((x, *strided))

    # --- repeatability

    @_DTYPES
    def test_bits_repeat_on_any_number_of_threads(self, dtype: torch.dtype) -> None:
        n_before = torch.get_num_threads()
        try:
            for sample in self.samples(dtype):
                for label, call in self._implementations(sample.args):
                    torch.set_num_threads(1)
                    one, again = call(), call()
                    torch.set_num_threads(2)
                    two = call()
                    assert torch.equal(one, again), f"{sample.name}, {label}: two runs differ"
                    assert torch.equal(one, two), f"{sample.name}, {label}: 1 and 2 threads differ"
        finally:
            torch.set_num_threads(n_before)

    def test_calls_from_four_threads(self) -> None:
        args = self._first(torch.bfloat16)
        expected, failures = self.op(*args), []

        def work() -> None:
            for _ in range(50):
                if not torch.equal(self.op(*args), expected):
                    failures.append(threading.get_ident())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a call did not return"
        assert not failures

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_calls_after_fork(self) -> None:
        args = self._first(torch.bfloat16)
        expected = self.op(*args)
        with warnings.catch_warnings():
            # Fork with live threads is the point.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(self.op(*args), expected) else 3)
        until = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        if done[0] == 0:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done[0], "the call in the child did not return"
        assert os.waitstatus_to_exitcode(done[1]) == 0

    # --- the rest of torch

    @_DTYPES
    def test_opcheck(self, dtype: torch.dtype) -> None:
        x, *others = self._first(dtype)
        if self.has_gradient:
            x = x.clone().requires_grad_()
        # test_schema compares arguments before and after with allclose, which float8 has not
        float8 = any(isinstance(t, Tensor) and _is_float8(t) for t in others)
        before = [t.clone() if isinstance(t, Tensor) else t for t in others]
        checks = _OPCHECKS[1:] if float8 else _OPCHECKS
        torch.library.opcheck(self.op.overload, (x, *others), test_utils=checks)
        for old, now in zip(before, others, strict=True):
            if isinstance(now, Tensor) and _is_float8(now):
                assert torch.equal(old.view(torch.uint8), now.view(torch.uint8))

    @_DTYPES
    def test_compiles_in_one_graph(self, dtype: torch.dtype) -> None:
        x, *others = self._first(dtype)
        torch.compiler.reset()
        compiled = torch.compile(lambda x: self.op(x, *others), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), self.op(x, *others))
        twice = torch.cat((x, x))
        assert torch.equal(compiled(twice), self.op(twice, *others))

    def test_exports(self) -> None:
        x, *others = self._first(torch.bfloat16)

        class Module(torch.nn.Module):
            def forward(_, x: Tensor) -> Tensor:
                return self.op(x, *others)

        with torch.no_grad():
            program = torch.export.export(Module(), (x,))
        assert torch.equal(program.module()(x), self.op(x, *others))

    def test_inference_mode(self) -> None:
        args = self._first(torch.bfloat16)
        with torch.inference_mode():
            y = self.op(*args)
        assert y.is_inference() and torch.equal(y, self.op(*args))

    def test_meta_tensors(self) -> None:
        args = self._first(torch.bfloat16)
        y = self.op(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
        like = self.op(*args)
        assert y.device.type == "meta" and y.shape == like.shape and y.dtype == like.dtype

    @_DTYPES
    def test_gradients_match_the_reference(self, dtype: torch.dtype) -> None:
        if not self.has_gradient:
            pytest.skip("the op has no gradient")
        for sample in self.samples(dtype):
            ours, wanted = self._leaves(sample.args, None), self._leaves(sample.args, torch.float64)
            y, expected = self.op(*ours), self.gradient_reference(wanted)
            grad = torch.randn_like(expected)
            y.backward(grad.to(y.dtype))
            expected.backward(grad.to(y.dtype).double())
            for position, (a, b) in enumerate(zip(ours, wanted, strict=True)):
                if not isinstance(a, Tensor) or not a.requires_grad:
                    continue
                where = f"{sample.name}, argument {position}"
                assert a.grad is not None and b.grad is not None, f"{where}: no gradient"
                assert a.grad.dtype == a.dtype, where
                limit = 2 * torch.finfo(a.dtype).eps * b.grad.abs() + 1e-5 * (
                    1 + b.grad.abs().max()
                )
                assert ((a.grad.double() - b.grad).abs() <= limit).all(), f"{where}: wrong gradient"

    def test_refuses_unknown_arguments(self) -> None:
        args = self._first(torch.bfloat16)
        with pytest.raises(TypeError, match="nonsense"):
            self.op(*args, nonsense=1)
        with pytest.raises(TypeError, match=self.op.name):
            self.op(args[0])

    def test_why_not_gives_reasons(self) -> None:
        reasons = self.op.why_not(*self._first(torch.bfloat16))
        assert all(isinstance(reason, str) and reason for reason in reasons.values())

    # --- internals

    def _first(self, dtype: torch.dtype) -> tuple[Any, ...]:
        return next(iter(self.samples(dtype))).args

    def _implementations(self, args: tuple[Any, ...]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The op itself and each kernel that takes the arguments, under every variant."""
        self.op.why_not(*args)  # loads the kernels
        device = args[0].device.type
        for variant, context in self.variants():
            with context():
                yield f"{variant} op", lambda: self.op(*args)
                for kernel in self.op.kernels:
                    if device in kernel.devices and kernel.supports(*args) is None:
                        yield f"{variant} {kernel.name}", lambda run=kernel.run: run(*args)

    def _results(self, args: tuple[Any, ...]) -> list[tuple[str, Tensor]]:
        return [(label, call()) for label, call in self._implementations(args)]

    def _match(self, args: tuple[Any, ...]) -> None:
        expected = self.expected(args)
        bound = self.bound(args, expected)
        for label, call in self._implementations(args):
            y = call()
            where = f"{label}, x {tuple(args[0].shape)} stride {args[0].stride()}"
            assert y.shape == expected.shape, f"{where}: {tuple(y.shape)}"
            assert ((y.double() - expected).abs() <= bound).all(), f"{where}: wrong numbers"

    def _leaves(self, args: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
        """Copies of the arguments in which those that the op differentiates require a gradient."""
        names = [argument.name for argument in self.op.overload._schema.arguments]
        leaves = []
        for name, value in zip(names, args, strict=True):
            if name in ("x", "bias") and isinstance(value, Tensor):
                value = value.detach().to(dtype or value.dtype).clone().requires_grad_()
            leaves.append(value)
        return tuple(leaves)
