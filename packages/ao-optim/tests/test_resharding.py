"""torch.distributed.checkpoint of FSDP2 parameters and their state: saved by two processes, loaded
by two, three and one, without FSDP2; and saved by three, loaded by three and two."""

from __future__ import annotations

from pathlib import Path

import pytest
import resharding_steps

from ao_core.testing.sharding_contract import run_processes


@pytest.mark.filterwarnings("ignore::UserWarning")  # of dcp, in one process
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [(2, 3, tuple(resharding_steps.KINDS)), (3, 2, ("4bit", "offload"))],
)
def test_resharding(before: int, after: int, kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Bit for bit at once and two steps later, where rows are whole blocks or state is full; and
    everywhere in as many processes as saved."""
    run_processes(before, resharding_steps.start, tmp_path, kinds)
    run_processes(after, resharding_steps.go_on, tmp_path, kinds)
    if before == 2:
        resharding_steps.go_on(tmp_path, kinds, shard=False)
