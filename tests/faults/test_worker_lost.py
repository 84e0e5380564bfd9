"""`kill -9` of workers, torn files, a second controller."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend

from sweep.cli import space_wait
from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl
from sweep.controller.room_channel import RoomChannel
from sweep.errors import RetryLater
from sweep.model.states import Finished, Mode
from sweep.processes import PreforkServer
from sweep.queues.local import LocalBackend
from sweep.report.reader import open_reader
from sweep.wiring import session
from sweep.wiring.rooms import controller_lock, journal_path, load_settings
from tests.helpers.fakes import FastDispatcher
from tests.helpers.kill_points import make_room, run_here, run_killed
from tests.helpers.sweep_checks import check_sweep, wait_for_workers
from trainer.room import Room, held, hold, read_text


def kill_workers_of_running_trials(room: Room, times: int) -> None:
    """Kill a worker that has begun its trial, again and again."""
    killed = 0
    deadline = time.monotonic() + 600
    while killed < times and time.monotonic() < deadline:
        time.sleep(0.05)
        for name in room.workers():
            files = room.worker(name)
            begun = any(room.attempt(*attempt).reports.exists() for attempt in files.assignments())
            if begun and held(files.lock):
                os.kill(int((read_text(files.lock) or "").split()[0]), signal.SIGKILL)
                killed += 1
                break


def test_a_killed_worker_s_trial_goes_on_from_its_checkpoint_with_its_number(rooms: Path) -> None:
    room = make_room(rooms, "pruner=none", "search.max_attempts=20", "queue.env={STEP_SECONDS: '0.1'}")
    killer = threading.Thread(target=kill_workers_of_running_trials, args=(room, 4))
    killer.start()
    assert run_here(room).how is Finished.DONE
    killer.join()
    wait_for_workers(room)
    check_sweep(room, 8)
    rows = open_reader(room).state().rows
    assert any(row.attempts > 1 for row in rows)
    again = next(row for row in rows if row.attempts > 1)
    firsts = [
        text.splitlines()
        for n in room.attempts(again.number)
        if (text := read_text(room.attempt(again.number, n).reports))
    ]
    milestones = [len(lines) for lines in firsts]
    assert sum(milestones) <= 4 + again.attempts - 1, "what was checkpointed is not trained again"


def test_a_trial_whose_workers_are_lost_too_often_is_told_failed_and_the_sweep_goes_on(rooms: Path) -> None:
    room = make_room(
        rooms, "queue.workers=1", "search.max_attempts=2", "search.trials=2", "queue.env={STEP_SECONDS: '9'}"
    )
    killer = threading.Thread(target=kill_workers_of_running_trials, args=(room, 4))
    killer.start()
    finish = run_here(room)
    killer.join()
    rows = open_reader(room).state().rows
    assert finish.how is Finished.FAILED
    assert finish.reason.startswith("all 2 trials have ended, and none is complete: 2 failed; the last failure: its")
    assert [(row.state, row.attempts) for row in rows] == [("failed", 2), ("failed", 2)]
    assert rows[0].reason == "its worker was lost 2 times (search.max_attempts=2)"


def test_a_torn_journal_line_is_cut_off_and_the_sweep_goes_on(rooms: Path) -> None:
    room = make_room(rooms)
    run_killed(room, lambda: 7)
    with journal_path(room).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"x","tri')
    assert run_here(room).how is Finished.DONE
    wait_for_workers(room)
    check_sweep(room, 8)


def test_a_lock_left_by_a_killed_journal_writer_is_taken_away(rooms: Path) -> None:
    """Optuna would wait half a minute for it; the room's own lock says that nobody holds it."""
    room = make_room(rooms)
    lock = Path(f"{journal_path(room)}.lock")
    lock.symlink_to(journal_path(room))
    study = session.open_study(room, load_settings(room))
    assert not lock.is_symlink()
    assert study.ask() == 0


def test_a_second_controller_is_refused(rooms: Path) -> None:
    room = make_room(rooms)
    with hold(controller_lock(room), "the first") as mine:
        assert mine
        with pytest.raises(RetryLater, match=r"another controller runs s already.*sweep watch s"):
            _in_other_process(room)


def _in_other_process(room: Room) -> None:
    """`flock` is held by an open file, so that a second open in this very process is refused like another's."""
    drive(room, RunControl(room), PreforkServer())


@pytest.mark.parametrize("pausing", [(), ("sampler=forecast", "pruner=freeze_thaw")], ids=["", "pausing"])
def test_a_shared_file_system_that_stumbles_is_waited_for(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, pausing: tuple[str, ...]
) -> None:
    room = make_room(rooms, "search.trials=2", *pausing)
    observe, calls = RoomChannel.observe, [0]

    def stumbling(self: RoomChannel, *words: Any) -> Any:
        calls[0] += 1
        if calls[0] in (3, 4, 9):
            raise OSError(errno.ESTALE, "Stale file handle")
        return observe(self, *words)

    monkeypatch.setattr(RoomChannel, "observe", stumbling)
    assert run_here(room).how is Finished.DONE
    assert calls[0] > 9
    wait_for_workers(room)
    check_sweep(room, 2)


def test_what_a_failing_look_had_read_and_what_could_not_be_recorded_is_not_lost(
    rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each report is shown once: a stumble after it was read, or while the study takes it down, must not lose it."""
    room = make_room(rooms, "search.trials=6", "pruner=none")
    append, calls = JournalFileBackend.append_logs, [0, 0]

    def stumbling(path: Path) -> str | None:
        calls[0] += 1
        if path.name == "outcome.json" and calls[0] % 5 == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_text(path)

    def failing(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        calls[1] += 1
        if calls[1] % 4 == 0 and "intermediate_value" in logs[0]:
            raise OSError(errno.EIO, "Input/output error")
        append(self, logs)

    monkeypatch.setattr("sweep.controller.room_channel.read_text", stumbling)
    monkeypatch.setattr(JournalFileBackend, "append_logs", failing)
    assert run_here(room).how is Finished.DONE
    monkeypatch.undo()
    wait_for_workers(room)
    check_sweep(room, 6)
    known = {t.number: t.intermediate_values for t in session.open_study(room, load_settings(room)).frozen()}
    rows = open_reader(room).state().rows
    assert known == {row.number: {report.milestone: report.loss for report in row.reports} for row in rows}
    assert all(row.value == row.reports[-1].loss for row in rows)


def test_a_disk_that_is_full_is_waited_for(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever line of the journal is the first that does not fit, and whatever part of it does."""
    room = make_room(rooms)
    append, left = JournalFileBackend.append_logs, [30]

    def full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        left[0] -= 1
        if left[0] % 7 == 0:
            with journal_path(room).open("ab") as journal:
                journal.write(b'{"op_code":')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    monkeypatch.setattr(LocalBackend, "_dispatcher", lambda self, room, *_: FastDispatcher(room, (), 1))
    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    monkeypatch.setattr(space_wait, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(space_wait, "MAX_RETRY_SECONDS", 0.01)
    with caplog.at_level("INFO"):
        assert drive(room, RunControl(room), PreforkServer()).how is Finished.DONE
    assert "no space left ([Errno 28] No space left on device); the sweep waits" in caplog.text
    assert "there is space again; the sweep goes on" in caplog.text
    assert left[0] < 0
    wait_for_workers(room)
    check_sweep(room, 8)


def test_a_sweep_that_is_to_stop_and_finds_no_space_again_ends_with_that_word(
    rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room has space, and its storage on another disk has none."""
    room = make_room(rooms)

    def full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalBackend, "_dispatcher", lambda self, room, *_: FastDispatcher(room, (), 1))
    monkeypatch.setattr(space_wait, "FIRST_RETRY_SECONDS", 0.01)
    control = RunControl(room)
    with monkeypatch.context() as patched:
        patched.setattr(JournalFileBackend, "append_logs", full)
        waits = space_wait.SpaceWait(room, control)
        control.mode = Mode.STOP
        error = OSError(errno.ENOSPC, "No space left on device")
        assert waits.wait(error) is None, "there may be space by now"
        finish = waits.wait(error)
    assert finish is not None
    assert (finish.how, "no space left" in finish.reason) == (Finished.FAILED, True)
