"""Run as a script: saves in child processes that SIGKILL ends, at every step and at any time.

    python killed_saves.py <folder>      prints the cases as JSON, one a line

Children are forked, because importing torch for each would take minutes.
"""

import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ao_core import checkpoint_file
from ao_core.checkpoint import load, save

SMALL, LARGE = 2000, 10**9  # shard sizes: several files, one file
FORMS = {"single": LARGE, "sharded": SMALL}


def state(version: int) -> dict[str, torch.Tensor]:
    """Four tensors whose values say which version they are; sizes and names differ as well."""
    return {f"{version}.{i}": torch.full((100 + version,), version) for i in range(4)}


def version_of(path: Path) -> int:
    """The version of a checkpoint; an assertion fails if it is a mix."""
    found = load(path)
    versions = {int(n) for t in found.values() for n in t} | {int(n.split(".")[0]) for n in found}
    (version,) = versions
    assert found.keys() == state(version).keys()
    return version


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that does `work`."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def die_at(step: int) -> None:
    """Make this process die before its `step`-th fsync, rename, removal or write of a tensor."""
    count = 0

    def counted(
        fn: Callable[..., Any], last: Callable[..., None] | None = None
    ) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                if last is not None:
                    last(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return fn(*args, **kwargs)

        return wrapper

    def half(file: Any, t: torch.Tensor) -> None:
        file.write((ctypes.c_char * (t.nbytes // 2)).from_address(t.data_ptr()))
        file.flush()

    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    checkpoint_file._write = counted(checkpoint_file._write, half)


def every_step(folder: Path) -> None:
    """Old form -> new form, killed at step 1, 2, ... until the save comes to its end."""
    for target in ("folder", "x.safetensors"):
        for old in ("none", *FORMS) if target == "folder" else ("none", "single"):
            for new in FORMS if target == "folder" else ("single",):
                for step in range(1, 100):
                    place = folder / f"{target}-{old}-{new}-{step}"
                    place.mkdir()
                    path = place / target
                    if old != "none":
                        save(state(1), path, max_shard_size=FORMS[old])

                    def work(path: Path = path, new: str = new, step: int = step) -> None:
                        die_at(step)
                        save(state(2), path, max_shard_size=FORMS[new])

                    status = in_child(work)
                    case = {"path": str(path), "old": old, "killed": status == signal.SIGKILL}
                    sys.stdout.write(json.dumps(case) + "\n")
                    if not case["killed"]:
                        break


def any_time(folder: Path, rounds: int) -> None:
    """One folder, saved to again and again by processes that are killed at random moments."""
    path, seed = folder / "any-time", random.Random(0)
    start = time.perf_counter()
    in_child(lambda: save(state(0), path, max_shard_size=SMALL))
    pace = time.perf_counter() - start
    seen, killed = set(), 0
    for _ in range(rounds):

        def work() -> None:
            for version in itertools.cycle(range(1, 100)):
                save(state(version), path, max_shard_size=(SMALL, LARGE)[version % 2])

        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(0)
        time.sleep(seed.uniform(0, 6 * pace))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        seen.add(version_of(path))
        assert len(list(path.iterdir())) < 30, "what killed saves leave behind piles up"
    save(state(1), path)
    assert {p.name for p in path.iterdir()} == {"model.safetensors"}
    sys.stdout.write(
        json.dumps({"any time": rounds, "killed": killed, "versions": len(seen)}) + "\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # SIGKILL loses nothing that was written
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    every_step(folder)
    any_time(folder, 15)
