"""The controller as a SLURM job: how it hands over where the scheduler does not answer."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweep.cli import background, run_control
from sweep.cli.background import control, controller_log, start_detached, take_over
from sweep.cli.run_control import RunControl
from sweep.errors import GiveUp, RetryLater
from sweep.model.effects import Finish
from sweep.model.states import Finished
from sweep.queues.slurm import commands
from sweep.queues.slurm import controller_job as slurm_job
from sweep.queues.slurm.submit import job_name
from sweep.wiring.rooms import load_settings
from tests.helpers.kill_points import make_room
from trainer.room import Room, read_json, write_atomic

LATE = "sbatch: Socket timed out on send/recv operation"
DELAY_SECONDS = 100


class Cluster:
    """Answers in place of sbatch and squeue, on a clock of its own.

    Args:
        lost: submissions that are taken, and whose answers are lost.
        refused: submissions that get no answer and are not taken.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.lost = self.refused = 0
        self.error: Exception = RetryLater(LATE)
        self.submitted: list[str] = []
        self.jobs: list[commands.QueuedJob] = []
        self.cancelled: list[str] = []
        monkeypatch.setattr(slurm_job, "submit_calls", self.submit)
        monkeypatch.setattr(background, "_drive", self.drive)
        monkeypatch.setattr(commands, "queue", lambda names: [job for job in self.jobs if job.name in names])
        monkeypatch.setattr(commands, "cancel", self.cancelled.extend)
        for module in (background, run_control, slurm_job):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def submit(self, folder: Path, words: dict[str, Any], calls: Sequence[Any], python: str | None) -> list[str]:
        self.submitted.append(words["job_name"])
        if self.refused:
            self.refused -= 1
            raise self.error
        self.jobs.append(commands.QueuedJob(words["job_name"], str(70 + len(self.jobs)), "PENDING", "", "Priority", 0))
        if self.lost:
            self.lost -= 1
            raise RetryLater(LATE)
        return [self.jobs[-1].id]

    def drive(self, room: Room, control: RunControl) -> Finish:
        """The job's time limit nears."""
        control.hand_over(signal.SIGUSR2, None)
        self.now += 10  # until the controller's round is over
        return Finish(Finished.HANDED_OVER, "another controller goes on")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.fixture
def room(rooms: Path) -> Room:
    words = f"queue.controller={{timeout_min: 60, slurm_signal_delay_s: {DELAY_SECONDS}}}"
    found = make_room(rooms, "queue=slurm_cpu", words)
    (found.root / "submitit").mkdir()
    write_atomic(found.root / "controller.json", json.dumps({"name": name(found, 1), "number": 1, "id": "5"}))
    return found


def name(room: Room, number: int) -> str:
    settings = load_settings(room)
    return job_name(room, settings.name, f"controller-{number}", settings.token)


def record(room: Room) -> Any:
    return read_json(room.root / "controller.json")


def test_a_hand_over_is_tried_again_under_the_same_number(
    room: Room, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.refused = 3
    control(str(room.root))
    assert cluster.submitted == [name(room, 2)] * 4
    assert record(room) == {"name": name(room, 2), "number": 2, "id": "70"}
    said = capsys.readouterr().out
    assert said.count(f"WARNING error, retrying: {LATE}") == 3
    assert "the next controller is job 70" in said


def test_a_submission_whose_answer_was_lost_is_found_and_not_made_again(room: Room, cluster: Cluster) -> None:
    cluster.lost = 1
    control(str(room.root))
    assert cluster.submitted == [name(room, 2)]
    assert record(room) == {"name": name(room, 2), "number": 2, "id": "70"}
    assert (room.root / "submitit" / "70_submitted.pkl").exists(), "without it the job would end in a minute"


@pytest.mark.parametrize(
    ("error", "tries"), [(RetryLater(LATE), lambda n: n > 5), (GiveUp("sbatch: no such account"), lambda n: n == 1)]
)
def test_a_hand_over_that_fails_ends_in_a_sentence_before_the_job_does(
    room: Room, cluster: Cluster, error: Exception, tries: Callable[[int], bool]
) -> None:
    cluster.refused, cluster.error = 1000, error
    with pytest.raises(SystemExit) as failed:
        control(str(room.root))
    how = f"start one with `sweep resume {room.root.name} --detach`"
    said = f"no controller follows: {error}; the workers keep training; {how}"
    assert failed.value.code == said, "printed, and exit code 1"
    assert failed.value.__suppress_context__
    assert tries(len(cluster.submitted))
    assert set(cluster.submitted) == {name(room, 2)}
    assert cluster.now <= 1000 + DELAY_SECONDS - slurm_job.REPORT_SECONDS
    assert controller_log(room).name == "5_0_log.out", "`sweep logs --controller` shows what was said"


def test_a_start_whose_answer_was_lost_is_there_already_and_can_run(room: Room, cluster: Cluster) -> None:
    cluster.lost = 1
    with pytest.raises(RetryLater, match="timed out"):
        start_detached(room)
    with pytest.raises(RetryLater, match="the controller's job 70 is there already and waits"):
        start_detached(room)
    assert record(room)["id"] == "70"
    assert (room.root / "submitit" / "70_submitted.pkl").exists()


def test_a_controller_s_job_that_another_was_made_in_the_place_of_ends(
    room: Room, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could else start when the sweep has been stopped, and take it up again."""
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    control(str(room.root))
    assert capsys.readouterr().out.endswith(" INFO the controller's job is 5, so this job ends\n")
    assert cluster.submitted == []


def test_every_job_of_the_controller_s_name_is_taken_over(room: Room, cluster: Cluster) -> None:
    """A submission without an answer that was made again, and had been taken after all."""
    cluster.jobs = [commands.QueuedJob(name(room, 1), job, "PENDING", "", "Priority", 0) for job in ("8", "9")]
    assert take_over(room) == "8 and 9"
    assert cluster.cancelled == ["8", "9"]
