"""The checks of this folder fail where they must: each is shown a sweep with the fault that it is there to find."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from sweep.model.facts import Job
from sweep.model.states import Finished, JobState
from sweep.report.reader import open_reader
from sweep.wiring.rooms import journal_path
from tests.helpers.executions import check_executions, executions_dir, marked, read_marks
from tests.helpers.fakes import HOLD, IGNORES_FENCE, FastDispatcher
from tests.helpers.kill_points import make_room, run_here
from tests.helpers.sweep_checks import (
    check_logs,
    check_no_process,
    check_sweep,
    check_told_once,
    check_values,
    count_tells,
    tell_counts,
    wait_for_workers,
)
from tests.helpers.waiting import until
from trainer.room import Room

ONE = ("search.trials=1", "queue.workers=1", "pruner=none")


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """While the block runs, act once the condition holds."""

    def wait() -> None:
        until(condition)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_two_living_attempts_of_a_trial_are_seen(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: the queue says that a worker is gone, which lives and does not see its fence."""
    room = make_room(rooms, *ONE, f"queue.env={{{IGNORES_FENCE}: '1', STEP_SECONDS: '0.01'}}")
    (room.root / HOLD).touch()
    poll = FastDispatcher.poll

    def wrong(self: FastDispatcher) -> Mapping[str, Job]:
        jobs = dict(poll(self))
        if "w0001" in jobs and room.attempt(0, 1).reports.exists():
            jobs["w0001"] = Job(0, JobState.GONE)
        return jobs

    monkeypatch.setattr(FastDispatcher, "poll", wrong)
    with once(room.attempt(0, 2).reports.exists, (room.root / HOLD).unlink):
        assert run_here(room).how is Finished.DONE
    wait_for_workers(room)
    assert {mark.attempt for mark in read_marks(executions_dir(room.root))} == {1, 2}
    with pytest.raises(AssertionError, match=r"trial 0: process \d+ began attempt 2 at the same time as process \d+"):
        check_sweep(room, 1)
    check_sweep(room, 1, overlapping=[0])


def test_an_overlap_is_seen_by_the_times_alone(tmp_path: Path) -> None:
    with marked(tmp_path, 3, 1):
        pass
    check_executions(tmp_path)
    with marked(tmp_path, 3, 2):
        pass
    check_executions(tmp_path)
    marks = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    marks[2]["at"] = marks[0]["at"] + 1  # the second began before the first ended
    (tmp_path / "log").write_text("".join(f"{json.dumps(mark)}\n" for mark in marks))
    with pytest.raises(AssertionError, match="at the same time"):
        check_executions(tmp_path)


def test_an_attempt_that_is_trained_twice_one_that_still_trains_and_none_at_all_are_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing was trained"):
        check_executions(tmp_path)
    with marked(tmp_path, 0, 1), pytest.raises(AssertionError, match="still trains it"):
        check_executions(tmp_path, seconds=0.1)
    with marked(tmp_path, 0, 1):
        pass
    with pytest.raises(AssertionError, match=r"trained twice, as \(trial, attempt\): \[\(0, 1\)\]"):
        check_executions(tmp_path)


def test_a_trial_that_is_told_twice_or_never_is_seen(rooms: Path) -> None:
    room = make_room(rooms, *ONE)
    with pytest.raises(AssertionError):
        check_told_once(room, [0])
    run_here(room)
    check_told_once(room, [0])
    lines = journal_path(room).read_text().splitlines()
    again = next(line for line in lines if json.loads(line)["op_code"] == 6)
    with journal_path(room).open("a") as journal:
        journal.write(f"{again}\n")
    assert tell_counts(room) == {0: 2}


def test_a_database_counts_what_it_is_told(rooms: Path) -> None:
    path = rooms.parent / "study.db"
    room = make_room(rooms, *ONE, f"storage=sqlite:///{path}")
    count_tells(path)
    count_tells(path)
    assert tell_counts(room) == {}
    run_here(room)
    check_told_once(room, [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "which no attempt reported"),
        (lambda lines: [*lines[:-1], lines[-1].replace('"final": true', '"final": false')], "is no final one"),
        (lambda lines: [*lines, lines[-1].replace('"milestone": 4', '"milestone": 5')], "the study lacks the reports"),
    ],
    ids=["a report that is not there", "no final report", "a report that the study lacks"],
)
def test_a_value_that_is_not_that_of_the_final_report_is_seen(rooms: Path, change: object, message: str) -> None:
    room = make_room(rooms, *ONE)
    run_here(room)
    check_values(room, open_reader(room).state())
    reports = room.attempt(0, 1).reports
    reports.write_text("".join(f"{line}\n" for line in change(reports.read_text().splitlines())))  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        check_values(room, open_reader(room).state())


def test_a_value_that_no_report_has_is_seen(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = make_room(rooms, *ONE)
    tell = optuna.Study.tell
    monkeypatch.setattr(optuna.Study, "tell", lambda self, trial, value, **more: tell(self, trial, value + 1, **more))
    run_here(room)
    with pytest.raises(AssertionError, match="trial 0 was told"):
        check_values(room, open_reader(room).state())


def test_a_traceback_and_a_process_that_lives_on_are_seen(tmp_path: Path) -> None:
    room = Room(tmp_path)
    log = room.worker("w0001").log
    log.parent.mkdir(parents=True)
    log.write_text("Traceback (most recent call last):\n")
    with pytest.raises(AssertionError, match="Traceback"):
        check_logs(room)
    with log.open("a") as file, subprocess.Popen(["sleep", "600"], stdout=file) as process:
        try:
            with pytest.raises(AssertionError, match=f"processes live on: .*{process.pid}"):
                check_no_process(tmp_path, seconds=0)
        finally:
            process.kill()
    check_no_process(tmp_path)
