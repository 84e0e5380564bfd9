"""A machine that is suspended, and a controller that is held up: no healthy worker is taken for dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.report.reader import open_reader
from sweep.wiring.rooms import controller_lock
from sweep.wiring.simulate import Silent
from tests.helpers.fakes import HOLD
from tests.helpers.kill_points import controller, make_room
from tests.helpers.sweep_checks import check_sweep, wait_for_workers
from tests.helpers.waiting import until
from trainer.identity import process_id
from trainer.room import Room, hold, read_text

SILENCE = 2.0


def forked_controller(room: Room) -> int:
    """The process id of a controller that runs the sweep to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with hold(controller_lock(room), "test") as mine:
                assert mine
                controller(room, Silent()).run()
            code = 0
        finally:
            os._exit(code)
    return pid


def worker_pids(room: Room) -> list[int]:
    locks = (read_text(room.worker(name).lock) or "" for name in room.workers())
    return [pid for text in locks if (pid := process_id(text)) is not None]


@pytest.fixture
def held(rooms: Path) -> Iterator[tuple[Room, int]]:
    """A sweep whose two trials stand still after their first milestone, and its controller's process."""
    room = make_room(rooms, "pruner=none", "search.trials=4", f"queue.silence_seconds={SILENCE}")
    (room.root / HOLD).touch()
    pid = forked_controller(room)
    until(lambda: all((read_text(room.attempt(trial, 1).reports) or "").count("\n") for trial in (0, 1)))
    yield room, pid


def finish(room: Room, pid: int) -> None:
    (room.root / HOLD).unlink()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    wait_for_workers(room)
    check_sweep(room, 4)
    assert [row.attempts for row in open_reader(room).state().rows] == [1, 1, 1, 1], "no attempt was lost"


def test_a_machine_that_was_suspended_loses_no_attempt(held: tuple[Room, int]) -> None:
    """The controller is back first, and sees heartbeats that are older than the longest silence."""
    room, controller_pid = held
    workers = worker_pids(room)
    for pid in (controller_pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * SILENCE)  # what passes is the subject here; nothing is measured
    os.kill(controller_pid, signal.SIGCONT)
    time.sleep(SILENCE / 4)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    finish(room, controller_pid)


def test_a_controller_that_was_stopped_loses_no_attempt(held: tuple[Room, int]) -> None:
    room, controller_pid = held
    os.kill(controller_pid, signal.SIGSTOP)
    time.sleep(2 * SILENCE)
    os.kill(controller_pid, signal.SIGCONT)
    finish(room, controller_pid)
