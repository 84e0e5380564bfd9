"""The commands of docs/slurm.md run, in its order, on a cluster."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from sweep.queues.slurm.section import SlurmQueue
from sweep.resources import launch_queues_dir
from tests.helpers.cli import run_commands
from tests.helpers.slurm_sweeps import use
from tests.helpers.waiting import until
from tests.helpers.warm import warm_processes
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "slurm.md").read_text()


@pytest.mark.slow
def test_the_walk_through_runs(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None) -> None:
    """The commands are forked, as is `tune run`; the cluster's jobs start anew."""
    monkeypatch.delenv("SWEEP_ROOMS", raising=False)
    monkeypatch.setenv("SLURM_CONF", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    use(cluster)
    blocks = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 9
    with warm_processes():
        printed = run_commands(lines, tmp_path)
    (run,) = (printed[line] for line in lines if "name=first" in line)
    assert "all 8 trials have ended" in run
    assert "pruned" in run
    assert "reproduced by tune run" in printed["sweep export first --verify"]
    assert "all 4 trials have ended" in printed["sweep logs second --controller"]
    until(lambda: cluster.run("squeue", "-h") == "")


def test_every_queue_and_every_key_is_named() -> None:
    queues = [path.stem for path in launch_queues_dir().glob("slurm*.yaml")]
    assert [name for name in queues if f"`{name}`" not in TEXT] == []
    common = {"kind", "slots", "threads", "idle_seconds", "silence_seconds", "start_seconds"}
    common |= {"stop_grace_seconds", "poll_seconds"}
    keys = {field.name for field in dataclasses.fields(SlurmQueue)} - common
    assert [key for key in sorted(keys) if f"`{key}`" not in TEXT and f"`queue.{key}" not in TEXT] == []
