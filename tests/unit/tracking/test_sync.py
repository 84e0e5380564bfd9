"""Which parts of runs are still to be uploaded, in which order, and what a failure leaves to be tried again."""

from __future__ import annotations

import math
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sweep.errors import RetryLater
from sweep.model.states import TrialStatus
from sweep.model.summary import TrialRow
from sweep.tracking import sync as wandbsync
from sweep.tracking.client import translated
from sweep.tracking.sync import pending_uploads, upload
from trainer.contract import Evaluation, Outcome, OutcomeKind, Tracking, TrialSpec, encode
from trainer.room import Room, write_atomic

TRACKING = Tracking("r", "online", {"project": "p"})
# As wandb names them: of when they were made, and whether they were meant to be sent at once.
FIRST, SECOND, THIRD = "run-20260101_100000-r", "offline-run-20260101_100500-r", "offline-run-20260101_110000-r"


class Wandb:
    """`wandb sync`: it notes what it was asked for, and fails for the directories that it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()

    def __call__(self, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:5] == ["-P", "-m", "wandb", "sync"]
        self.asked.append(Path(command[-1]).name)
        failed = self.asked[-1] in self.failing
        return subprocess.CompletedProcess(command, int(failed), "", "no answer\n" if failed else "")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    found = Wandb()
    monkeypatch.setattr("sweep.tracking.sync.subprocess.run", found)
    return found


def attempt(room: Room, trial: int, number: int, *runs: str, spec: TrialSpec | None = None, ended: bool = True) -> None:
    files = room.attempt(trial, number)
    made = spec or TrialSpec("s", trial, number, "w0001", {}, 10, tracking=TRACKING)
    write_atomic(files.spec, encode(made))
    for name in runs:
        write_atomic(files.path / "wandb" / name / "run-r.wandb", b"records")
    if ended:
        write_atomic(files.outcome, encode(Outcome(OutcomeKind.COMPLETED)))


def sync(room: Room) -> None:
    for part in pending_uploads(room):
        upload(part)


def test_a_part_that_failed_is_tried_again_and_no_other(tmp_path: Path, wandb: Wandb) -> None:
    room = Room(tmp_path)
    attempt(room, 3, 1, SECOND, FIRST)
    wandb.failing = {SECOND}
    with pytest.raises(RetryLater, match=f"{SECOND} did not arrive at W&B: no answer"):
        sync(room)
    assert wandb.asked == [FIRST, SECOND], "in the order in which they were made"
    wandb.failing.clear()
    sync(room)
    assert wandb.asked == [FIRST, SECOND, SECOND]
    sync(room)
    assert len(wandb.asked) == 3, "once each"


def test_what_arrived_goes_on_or_holds_no_record_is_left_alone(tmp_path: Path, wandb: Wandb) -> None:
    room = Room(tmp_path)
    attempt(room, 0, 1, FIRST)
    write_atomic(room.attempt(0, 1).path / "tracked", "r")
    attempt(room, 1, 1, FIRST, ended=False)
    attempt(room, 2, 1, FIRST)
    (room.attempt(2, 1).path / "wandb" / FIRST / "run-r.wandb").unlink()
    (room.attempt(2, 1).path / "wandb" / "latest-run").symlink_to(FIRST)
    sync(room)
    assert wandb.asked == []


def test_attempts_come_in_their_order_and_of_an_evaluation_only_its_own_run(tmp_path: Path, wandb: Wandb) -> None:
    room = Room(tmp_path)
    attempt(room, 3, 1, FIRST, ended=False)
    attempt(room, 3, 2, SECOND)
    judges = Evaluation("heldout", tracking=Tracking("judged", "online", {}))
    judged = TrialSpec("s", 4, 1, "w0001", {}, 10, evaluate=judges)
    attempt(room, 4, 1, "run-20260101_120000-judged", spec=judged)  # its scores are told, not uploaded
    attempt(room, 5, 1, "run-20260101_130000-judged", THIRD, spec=replace(judged, trial=5, tracking=TRACKING))
    assert [part.directory.name for part in pending_uploads(room)] == [FIRST, SECOND, THIRD]


class Summary(dict[str, Any]):
    """A run's summary as W&B's client shows it."""

    @property
    def _json_dict(self) -> dict[str, Any]:
        return self


class Run:
    id = "r"

    def __init__(self, said: dict[str, Any]) -> None:
        self.summary = Summary(said)


def row(**scores: float) -> TrialRow:
    return TrialRow(3, TrialStatus.COMPLETE, {}, 1.0, "", 1, "w0001", scores=scores)


@pytest.mark.parametrize("loss", [1.5, math.inf, math.nan])
def test_scores_are_told_where_a_run_does_not_say_them(loss: float) -> None:
    run = Run({"trial/state": "complete", "trial/reason": "", "val_loss": 1.0})
    assert wandbsync._publish_end(run, row(loss=loss))
    assert run.summary["val_loss"] == 1.0
    read_back = {math.inf: "Infinity"}.get(loss, "NaN" if math.isnan(loss) else loss)
    run.summary["eval/loss"] = read_back
    assert not wandbsync._publish_end(run, row(loss=loss)), "W&B says it already"
    assert wandbsync._publish_end(run, row(loss=2.5))
    assert run.summary["eval/loss"] == 2.5


def test_what_is_printed_while_another_thread_asks_w_and_b_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    """Two threads ask, and end in the order of their beginning: the output of neither is taken away."""
    begun, may_end = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def ask(index: int) -> None:
        begun[index].set()
        may_end[index].wait(60)

    threads = [threading.Thread(target=translated, args=(partial(ask, index), "a run")) for index in (0, 1)]
    for index, thread in enumerate(threads):
        thread.start()
        assert begun[index].wait(60)
    print("while they ask")
    for index, thread in enumerate(threads):
        may_end[index].set()
        thread.join(60)
    print("afterwards")
    assert capsys.readouterr().out == "while they ask\nafterwards\n"
