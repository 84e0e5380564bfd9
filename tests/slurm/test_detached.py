"""The controller as a job of its own: outlives the login session, hands over before its limit, obeys from afar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweep.report.reader import open_reader
from tests.helpers.cli import SMALL, status, sweep
from tests.helpers.slurm_sweeps import SLOW, training, use
from tests.helpers.sweep_checks import check_told_once
from tests.helpers.waiting import until
from tests.slurm.cluster import Cluster
from trainer.room import Room, read_json

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

WORDS = (*(word for word in SMALL if word != "queue.threads=1"), "queue=slurm_cpu", "queue.query_seconds=1")
LONG = ("recipe.overrides.dataset.split=train[:512]", "pruner=none", "queue.idle_seconds=60")


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: Cluster, rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "")
    use(cluster)


def controller(room: Room) -> dict[str, object]:
    found: dict[str, object] = read_json(room.root / "controller.json")
    return found


def test_a_detached_controller_hands_over_before_its_time_limit(cluster: Cluster, rooms: Path) -> None:
    """A minute at most, told 50 s before its end: it goes on as the next job, and so do the workers."""
    room = Room(rooms / "s")
    short = "queue.controller={timeout_min: 1, slurm_signal_delay_s: 50}"
    words = (*WORDS, *LONG, *SLOW)  # also where a trial of them takes a second, the sweep outlives its first controller
    said = sweep("run", *words, "queue.workers=2", "search.trials=5", short, "name=s", "--detach").stdout
    job = re.search(r"s runs as SLURM job (\d+);", said)
    assert job, said
    first = job[1]  # on a busy machine it has handed over by now
    assert "there already" in sweep("resume", "s", "--detach", code=1).stderr
    # the one that runs, or that its successor waits
    until(lambda: re.search(r", SLURM job \d|the controller's job \d+ waits", sweep("status", "s").stdout))
    until(lambda: sum(row.state in ("complete", "pruned") for row in open_reader(room).state().rows) == 5)
    assert sum(row["state"] in ("complete", "pruned") for row in status("s")["rows"]) == 5
    until(lambda: "done: all 5 trials have ended" in sweep("logs", "s", "--controller").stdout)
    assert int(str(controller(room)["number"])) > 1
    log = (room.root / "submitit" / f"{first}_0_log.out").read_text()
    assert "the next controller is job" in log
    check_told_once(room, range(5))
    assert [row.attempts for row in open_reader(room).state().rows] == [1] * 5, "no trial noticed"
    until(lambda: cluster.run("squeue", "-h") == "")


def test_stop_reaches_a_detached_controller_and_one_that_still_waits(cluster: Cluster, rooms: Path) -> None:
    room = Room(rooms / "s")
    sweep("run", *WORDS, *LONG, "queue.workers=1", "search.trials=4", "name=s", "--detach")
    until(lambda: training(room))
    assert "stopped: s" in sweep("stop", "s", timeout=600).stdout
    until(lambda: cluster.run("squeue", "-h") == "")
    assert {row.state for row in open_reader(room).state().rows} <= {"waiting", "complete"}
    nowhere = "queue.controller={slurm_dependency: 'afterany:1', slurm_additional_parameters: {begin: now+1hour}}"
    sweep("resume", "s", nowhere, "--detach")
    waiting = str(controller(room)["id"])
    assert f"the controller's job {waiting} waits" in sweep("status", "s").stdout
    said = sweep("stop", "s", timeout=600).stdout
    assert f"cancelled the controller's job {waiting}" in said
    until(lambda: cluster.run("squeue", "-h") == "")
    done = sweep("resume", "s", "search.trials=2")
    assert "done: all 2 trials have ended" in done.stdout
