"""A controller's job that dies while it submits its successor: there is one successor in the end, and no more."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sweep.errors import RetryLater
from sweep.queues.controller_job import controller_record
from sweep.queues.slurm import commands
from sweep.queues.slurm.controller_job import SlurmControllerJob
from sweep.queues.slurm.section import SlurmQueue
from tests.helpers.fakes import wait_for_end
from tests.helpers.kill_points import killed_before_act
from tests.helpers.slurm_sweeps import use
from tests.helpers.waiting import until
from tests.slurm.cluster import Cluster
from trainer.room import Room

MOST_ACTS = 60


def open_jobs(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "-h", "-o", "%i").split()


def test_a_hand_over_killed_before_every_act(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sweep resume --detach` then finds the successor, or submits one."""
    monkeypatch.setenv("SLURM_CONF", "")
    use(cluster)
    room = Room(tmp_path / "room")
    room.root.mkdir()

    def job() -> SlurmControllerJob:
        return SlurmControllerJob(room, "s", SlurmQueue(), wait_for_end)

    job().submit()
    for count in range(1, MOST_ACTS):
        ended = killed_before_act(lambda: job().hand_over(time.monotonic()), count, room.root)
        try:
            job().submit()
        except RetryLater as error:
            assert "is there already" in str(error)
        record = controller_record(room)
        found = commands.queue([record["name"]])
        assert [queued.id for queued in found if queued.waits or queued.runs] == [record["id"]]
        others = [name for name in open_jobs(cluster) if name != record["id"]]
        for other in others:  # those would see that the room names another, and end
            monkeypatch.setenv("SLURM_JOB_ID", other)
            assert job().replaced_by() == record["id"]
            monkeypatch.delenv("SLURM_JOB_ID")
            cluster.run("scancel", other)
        if ended:
            break
    assert 4 < count < MOST_ACTS - 1
    (room.root / "end").touch()
    until(lambda: open_jobs(cluster) == [])
