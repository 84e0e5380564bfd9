"""Sweeps on a SLURM cluster of the tests: rooms, controllers in threads, and what the cluster says of their jobs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweep.model.effects import Finish
from sweep.model.states import Mode
from tests.helpers.fakes import HOLD
from tests.helpers.kill_points import make_room, run_here
from tests.slurm.cluster import Cluster
from trainer.room import Room, read_json

FAST = ("queue=slurm_cpu", "queue.query_seconds=0.4", "queue.poll_seconds=0.05", "pruner=none")
# Trials of at least five seconds, of which they compute a part.
SLOW = ("recipe.overrides.loss._component_=tests.slurm.slow.SlowLoss", "recipe.components=[tests.slurm.]")


def use(cluster: Cluster) -> None:
    """Point this process, and those it starts, at a cluster; a test's monkeypatch puts the environment back."""
    os.environ.update(cluster.env())


def fast_room(rooms: Path, *overrides: str, step: float = 0.05) -> Room:
    """A sweep on the cluster whose workers train nothing."""
    return make_room(rooms, *FAST, f"queue.env={{STEP_SECONDS: '{step}'}}", *overrides)


@contextmanager
def running(room: Room, mode: Mode = Mode.RUN) -> Iterator[list[Finish]]:
    """A controller in a thread while the block runs, which waits for its end."""
    finishes: list[Finish] = []
    errors: list[BaseException] = []

    def control() -> None:
        try:
            finishes.append(run_here(room, mode))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=control)
    thread.start()
    try:
        yield finishes
    finally:
        thread.join(900)
        assert not thread.is_alive(), "the controller did not come to an end"
        assert not errors, errors


@contextmanager
def held(room: Room) -> Iterator[None]:
    """Let no trial pass its first milestone while the block runs, however slow the machine is."""
    hold = room.root / HOLD
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def training(room: Room, milestones: int = 1) -> dict[str, int]:
    """The running trial of each worker, if the trial has reported at least this often."""
    trials = {}
    for trial in room.trials():
        for number in room.attempts(trial):
            files = room.attempt(trial, number)
            reports = files.reports.read_text().count("\n") if files.reports.exists() else 0
            if reports >= milestones and not files.outcome.exists() and not files.fence.exists():
                trials[str(read_json(files.spec)["worker"])] = trial
    return trials


def job_of(room: Room, worker: str) -> str:
    return str(read_json(room.worker(worker).job)["id"])


def node_of(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-j", job, "-o", "%N")


def ends(room: Room) -> dict[str, str]:
    """How each worker's job ended."""
    return {name: str(read_json(room.worker(name).job)["end"]) for name in room.workers()}


def submitted(cluster: Cluster, room: Room) -> list[str]:
    """Names of all jobs of a room that the cluster ever saw, one for each task of an array."""
    names = {str(read_json(room.worker(name).job)["name"]) for name in room.workers()}
    listed = cluster.run("squeue", "-h", "-r", "-t", "all", f"--name={','.join(sorted(names))}", "-O", "Name:100")
    return [line.strip() for line in listed.splitlines()]
