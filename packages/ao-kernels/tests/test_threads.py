"""The thread pool and the OpenMP backend: every byte is visited once, from any thread, before and
after fork."""

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import torch

_C = pytest.importorskip("ao_kernels._C", reason="needs the compiled extension")

DATA = torch.arange(1 << 20, dtype=torch.int64)


def _checksum(n_threads: int) -> int:
    return _C.read_memory(DATA.data_ptr(), DATA.nbytes, n_threads)


@pytest.fixture(params=["pool", "auto"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    _C.set_thread_backend(request.param)
    yield request.param
    _C.set_thread_backend("auto")


def test_every_byte_is_read_once(backend: str) -> None:
    _C.set_isa("generic")
    try:
        wanted = 0
        for value in DATA.tolist():
            wanted ^= value
        assert {_checksum(n) for n in (1, 2, 3, 7, 64)} == {wanted}
    finally:
        _C.set_isa(_C.available_isas()[-1])


def test_concurrent_callers_finish(backend: str) -> None:
    expected, wrong = _checksum(1), []

    def work() -> None:
        wrong.extend(1 for _ in range(200) if _checksum(2) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_of_a_fork_has_working_threads(backend: str) -> None:
    expected = _checksum(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        same = all(_checksum(2) == expected for _ in range(20))
        os._exit(0 if same and _C.thread_backend() == "pool" else 3)
    until = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    if done[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done[0] and os.waitstatus_to_exitcode(done[1]) == 0
    assert _checksum(2) == expected


@pytest.mark.parametrize("name", ["pool", "auto"])
def test_process_exits_while_workers_wait(name: str) -> None:
    program = (
        "import torch; from ao_kernels import _C\n"
        f"_C.set_thread_backend({name!r}); x = torch.zeros(1 << 20)\n"
        "for _ in range(10): _C.read_memory(x.data_ptr(), x.nbytes, 2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'openmp', 'pool' or 'auto'"):
        _C.set_thread_backend("tbb")
