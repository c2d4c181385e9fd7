"""Optimizers over DTensor and FSDP2 parameters, in two gloo processes on the loopback."""

from __future__ import annotations

from sharded_steps import check_steps

from ao_core.testing.sharding_contract import run_two_processes


def test_sharding() -> None:
    run_two_processes(check_steps)
