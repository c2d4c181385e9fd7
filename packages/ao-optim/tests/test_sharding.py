"""Optimizers over DTensor and FSDP2 parameters: two gloo processes on the loopback, two GPUs."""

from __future__ import annotations

import pytest
import torch
from sharded_steps import check_on_gpus, check_steps

from ao_core.testing.sharding_contract import run_two_processes


def test_sharding() -> None:
    run_two_processes(check_steps)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device for each process")
def test_sharding_on_two_gpus() -> None:
    run_two_processes(check_on_gpus, device="cuda")
