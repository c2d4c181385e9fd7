"""Tensor and sequence parallel, in two gloo processes on the loopback."""

from __future__ import annotations

from parallel_training import check_parallel

from ao_core.testing.sharding_contract import run_two_processes


def test_parallel() -> None:
    run_two_processes(check_parallel)
