"""A process that is killed while it saves leaves the old checkpoint or the new one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed_saves import FORMS, state, version_of

from ao_core.checkpoint import save
from ao_core.errors import CheckpointError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork and SIGKILL")
def test_killed_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).with_name("killed_saves.py")
    command = [sys.executable, str(script), str(tmp_path / "cases")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    *cases, summary = (json.loads(line) for line in done.stdout.splitlines())
    assert summary["killed"] == summary["any time"] and summary["versions"] > 1

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    outcomes: dict[str, list[int]] = {}
    for case in cases:
        path = Path(case["path"])
        try:
            version = version_of(path)
        except (CheckpointError, FileNotFoundError):
            assert case["old"] == "none" and case["killed"], case
            version = 0
        assert version in (0, 2) if case["old"] == "none" else version in (1, 2), case
        single = path / "model.safetensors"
        if single.exists():  # readers that look for it first see one checkpoint too
            assert version_of(single) in (1, 2)
        outcomes.setdefault(str(path.parent).rsplit("-", 1)[0], []).append(version)
        form = ("single", "sharded")[len(outcomes) % 2]
        save(state(3), path, max_shard_size=FORMS[form])  # what was left is in nobody's way
        assert version_of(path) == 3
        names = {p.name for p in (path if path.is_dir() else path.parent).iterdir()}
        assert len(names) == (1 if form == "single" or path.is_file() else 3), names

    assert len(outcomes) == 8
    for versions in outcomes.values():  # old until the commit, then new; both were seen
        assert versions == sorted(versions) and versions[0] < 2 and versions[-1] == 2
        assert len(versions) > 4
