"""torch.distributed.checkpoint of FSDP2 parameters and their state: saved by two processes, loaded
by two, three and one, and without FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import resharding_steps

from ao_core.testing.sharding_contract import run_processes


@pytest.mark.filterwarnings("ignore::UserWarning")  # of dcp, in one process
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_resharding(tmp_path: Path) -> None:
    run_processes(2, resharding_steps.start, tmp_path)
    run_processes(3, resharding_steps.go_on, tmp_path)
    resharding_steps.go_on(tmp_path, shard=False)
