"""Launches: what is given to a launcher, and when Triton's ordinary launch is taken instead."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.triton
_DEVICE = torch.device("cuda", 3)
_STREAM = 77


class _Kernel:
    """Stands for a jitted kernel: notes ordinary launches and starts of what they compiled."""

    def __init__(self, compiled: Any = None) -> None:
        self.ordinary: list[tuple[Any, ...]] = []
        self.started: list[tuple[Any, ...]] = []
        self._compiled = compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> Any:
            self.ordinary.append((grid, args, kwargs))
            number = len(self.ordinary)
            return self._compiled or SimpleNamespace(
                run=lambda *args: self.started.append(args),
                function=f"function {number}",
                packed_metadata=f"metadata {number}",
            )

        return launch


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The current device, of which a list holds the index; torch.cuda.device changes it."""
    from ao_kernels.triton import launch

    index = [3]

    @contextlib.contextmanager
    def device(other: int) -> Iterator[None]:
        before, index[0] = index[0], other
        yield
        index[0] = before

    monkeypatch.setattr(launch, "_current_device", lambda: index[0])
    monkeypatch.setattr(launch, "_current_stream", lambda device: _STREAM if device == 3 else 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    yield index


def _launch(kernel: _Kernel) -> Any:
    from ao_kernels.triton.launch import Launch

    return Launch(kernel, (5, 2), (16, 1), {"BLOCK": 64, "EVEN": True}, {"num_warps": 4}, _DEVICE)


def _aligned(offset: int = 0) -> Tensor:
    """Elements of one byte that start ``offset`` bytes behind a multiple of 16."""
    data = torch.zeros(64, dtype=torch.int8)
    start = -data.data_ptr() % 16 + offset
    return data[start : start + 16]


def test_the_second_call_starts_what_the_first_compiled(current: list[int]) -> None:
    kernel = _Kernel()
    launch, x, y = _launch(kernel), _aligned(), _aligned()
    launch(x, None, y)
    options = {"BLOCK": 64, "EVEN": True, "num_warps": 4}
    assert kernel.ordinary == [((5, 2, 1), (x, None, y, 16, 1), options)] and not kernel.started
    other = _aligned()
    launch(other, None, y)
    assert len(kernel.ordinary) == 1
    addresses = (other.data_ptr(), 0, y.data_ptr())
    begin = (5, 2, 1, _STREAM, "function 1", "metadata 1", None, None, None)
    assert kernel.started == [(*begin, *addresses, 16, 1, 64, True)]


def test_each_pattern_of_alignment_has_its_own_compiled_kernel(current: list[int]) -> None:
    kernel = _Kernel()
    launch = _launch(kernel)
    patterns = [(0, 0), (1, 0), (0, 8), (3, 4)]
    for pattern in patterns:
        launch(*map(_aligned, pattern))
    assert len(kernel.ordinary) == 4 and not kernel.started
    for pattern in [(0, 0), (9, 0), (0, 2), (15, 15)]:
        launch(*map(_aligned, pattern))
    assert [call[4] for call in kernel.started] == [f"function {i}" for i in (1, 2, 3, 4)]


def test_kernels_see_float8_as_bytes(current: list[int]) -> None:
    kernel = _Kernel()
    codes = torch.zeros(4, dtype=torch.float8_e4m3fn)
    _launch(kernel)(codes)
    given = kernel.ordinary[0][1][0]
    assert given.dtype == torch.uint8 and given.data_ptr() == codes.data_ptr()


def test_launches_go_to_the_device_of_the_tensors(current: list[int]) -> None:
    kernel = _Kernel()
    launch = _launch(kernel)
    for _ in range(2):
        current[0] = 0
        launch(_aligned())
        assert current[0] == 0
    assert len(kernel.ordinary) == 1 and kernel.started[0][3] == _STREAM


def test_hooks_of_a_profiler_see_every_launch(
    current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    kernel = _Kernel()
    launch = _launch(kernel)
    launch(_aligned())
    hook = triton.knobs.runtime.launch_enter_hook
    with monkeypatch.context() as patch:
        patch.setattr(hook, "calls", [lambda metadata: None])
        launch(_aligned())
    assert len(kernel.ordinary) == 2 and not kernel.started
    launch(_aligned())
    assert len(kernel.ordinary) == 2 and len(kernel.started) == 1


@pytest.mark.parametrize("compiled", [SimpleNamespace(run=print), SimpleNamespace()])
def test_launches_stay_ordinary_without_the_launcher(current: list[int], compiled: Any) -> None:
    kernel = _Kernel(compiled)
    launch = _launch(kernel)
    for _ in range(3):
        launch(_aligned())
    assert len(kernel.ordinary) == 3


def test_launches_stay_ordinary_in_other_versions_of_triton(
    current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    for version, n_ordinary in [("3.5.1", 2), ("3.6.0", 1), ("3.9.0+git1", 1), ("4.0.0", 2)]:
        monkeypatch.setattr(triton, "__version__", version)
        kernel = _Kernel()
        launch = _launch(kernel)
        launch(_aligned())
        launch(_aligned())
        assert len(kernel.ordinary) == n_ordinary, version


def test_the_installed_triton_is_known() -> None:
    """If this fails, launches are ordinary ones, 70 to 130 us each on a host: compare
    JITFunction.run with Launch, and then let launch.is_known know the new version."""
    import triton
    from triton.compiler import CompiledKernel

    from ao_kernels.triton.launch import is_known

    seen = SimpleNamespace(run=None, function=None, packed_metadata=None)
    assert is_known(seen), f"triton {triton.__version__}"
    source = re.sub(r"\s+", "", inspect.getsource(triton.runtime.JITFunction.run))
    assert (
        "kernel.run(grid_0,grid_1,grid_2,stream,kernel.function,kernel.packed_metadata,"
        "launch_metadata,knobs.runtime.launch_enter_hook,knobs.runtime.launch_exit_hook,"
        "*bound_args.values())"
    ) in source
    assert "returnkernel" in source
    assert isinstance(CompiledKernel.run, property)
    assert hasattr(triton.knobs.runtime.launch_enter_hook, "calls")


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from ao_kernels.triton import launch

    monkeypatch.setattr(launch, "_MOST_PLANS", 10)
    plans: Any = launch.Plans()
    for number in range(25):
        assert plans.keep(number, str(number)) == str(number) == plans.get(number)
    assert plans.get(24) == "24" and plans.get(3) is None


def test_facts_tell_apart_what_plans_depend_on() -> None:
    from ao_kernels.triton.launch import facts, same_places

    x = torch.zeros(4, 8)
    others = [x.T, x[:, :4], x.double(), torch._neg_view(x), x[:2]]
    assert len({facts(t) for t in (x, *others)}) == 1 + len(others)
    assert facts(x) == facts(torch.ones(4, 8)) and facts(None) is None
    assert same_places((x, None), (x.view(2, 16), None)) and not same_places((x,), (x.clone(),))


def _calls() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every op with a Triton kernel, and a call of one token on a GPU."""
    from ao_kernels.ops import (
        int4_linear,
        int8_dynamic_linear,
        quantize_block,
        quantize_rowwise,
        quantize_tensorwise,
    )

    x = torch.randn(1, 256, device="cuda").bfloat16()
    codes4 = torch.randint(0, 256, (512, 128), dtype=torch.uint8, device="cuda")
    codes8 = torch.randint(-127, 128, (512, 256), dtype=torch.int8, device="cuda")
    scale, given = torch.rand(512, 2, device="cuda"), torch.ones((), device="cuda")
    yield int4_linear, (x, codes4, scale, scale + 7, 128, None)
    yield int8_dynamic_linear, (x, codes8, scale[:, :1].contiguous(), given.expand(512).clone())
    for dtype in (torch.float8_e4m3fn, torch.int8):
        yield quantize_rowwise, (x, dtype)
        yield quantize_tensorwise, (x, dtype, None)
        yield quantize_tensorwise, (x, dtype, given)
        yield quantize_block, (x, dtype, 1, 128)


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture
def only_triton() -> Iterator[None]:
    """Of several kernels for a GPU, those of Triton are taken."""
    from ao_kernels import force

    before = force("triton")
    yield
    force(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("only_triton")
def test_second_calls_look_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go from the op's direct entry to the launcher: no checks, no ordinary launch."""
    from ao_kernels.triton.launch import Launch

    def fail(*_: Any) -> None:
        raise AssertionError("an ordinary launch")

    for op, args in _calls():
        first = _as_tuple(op(*args))
        (kernel,) = [each for each in op.kernels if each.name == "triton"]
        with monkeypatch.context() as patch:
            patch.setattr(Launch, "_start", fail)
            direct = kernel.direct(1, *args)
            assert direct is not NotImplemented, op.name
            for found in (_as_tuple(direct), _as_tuple(op(*args))):
                for a, b in zip(found, first, strict=True):
                    assert torch.equal(a.float(), b.float()), op.name


@pytest.mark.gpu
@pytest.mark.usefixtures("only_triton")
def test_streams_of_their_own() -> None:
    """A launch goes to the stream that is current when it is made."""
    for op, (x, *others) in _calls():
        expected = _as_tuple(op(x, *others))
        stream = torch.cuda.Stream()
        late = torch.empty_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(x)
            found = _as_tuple(op(late, *others))
        stream.synchronize()
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a.float(), b.float()), op.name


@pytest.mark.gpu
@pytest.mark.usefixtures("only_triton")
def test_profilers_of_triton_see_launches() -> None:
    import triton

    seen: list[Any] = []
    hook = triton.knobs.runtime.launch_enter_hook
    for op, args in _calls():
        op(*args)
    hook.add(seen.append)
    try:
        for op, args in _calls():
            op(*args)
    finally:
        hook.remove(seen.append)
    assert len(seen) >= len(list(_calls()))


def test_forcing_a_backend_ends_what_was_chosen() -> None:
    from ao_kernels import force
    from ao_kernels.triton import launch

    plans: Any = launch.Plans()
    plans.keep("call", "plan")
    force(force("reference"))
    assert plans.get("call") is None
