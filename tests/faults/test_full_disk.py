"""A disk that is really full, with real workers: nothing is lost, and nothing counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ALLOWED = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(not ALLOWED, reason="this machine allows no user namespace, in which to mount a disk")


def on_a_small_disk(path: Path, scenario: str, *overrides: str) -> dict[str, Any]:
    """What `tests.helpers.full_disk` saw."""
    program = [sys.executable, "-m", "tests.helpers.full_disk", str(path / "disk"), scenario, *overrides]
    done = subprocess.run(["unshare", "-rm", *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def check_values(state: dict[str, Any], trials: int) -> None:
    """Every trial is complete, with the value of its last report and in one attempt."""
    rows = state["rows"]
    assert [(row["state"], row["attempts"]) for row in rows] == [("complete", 1)] * trials
    for row in rows:
        assert row["reports"][-1]["final"]
        assert row["value"] == row["reports"][-1]["val_loss"]


@pytest.mark.parametrize("storage", [(), ("storage=sqlite:///{disk}/study.db",)], ids=["journal", "sqlite"])
def test_a_sweep_waits_for_space_and_goes_on_by_itself(tmp_path: Path, storage: tuple[str, ...]) -> None:
    words = [word.format(disk=tmp_path / "disk") for word in storage]
    seen = on_a_small_disk(tmp_path, "freed", "search.trials=3", "queue.workers=2", "pruner=none", *words)
    assert seen["waits"].startswith("no space left in ")
    assert seen["waits"].endswith("; the sweep waits")
    assert seen["status"]
    assert seen["code"] == 0
    assert "there is space again; the sweep goes on" in seen["log"]
    assert "Traceback" not in seen["log"]
    check_values(seen["state"], 3)


def test_a_sweep_that_is_stopped_while_it_waits_ends_with_that_word(tmp_path: Path) -> None:
    seen = on_a_small_disk(tmp_path, "stopped", "search.trials=3", "queue.workers=2", "pruner=none")
    assert seen["stopped_code"] == 1
    assert "failed: no space left in " in seen["log"]
    assert "Traceback" not in seen["log"]
    check_values(seen["state"], 3)
