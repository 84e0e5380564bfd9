"""When a process takes its room for lost, and when only its file system fails for a moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer.presence import GONE_SECONDS, RoomLostError, RoomPresence, room_token
from trainer.room import Room, write_atomic


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def room(tmp_path: Path) -> Room:
    made = Room(tmp_path / "s")
    write_atomic(made.sweep, json.dumps({"token": "abc"}))
    return made


def test_its_own_room_is_no_problem_also_after_a_change(room: Room) -> None:
    watched = RoomPresence(room, "abc")
    assert watched.problem() == ""
    write_atomic(room.sweep, json.dumps({"token": "abc", "search": 7}))
    assert watched.problem() == ""
    assert room_token(room) == "abc"


def test_another_token_is_one_at_once(room: Room) -> None:
    watched = RoomPresence(room, "abc")
    watched.check()
    shutil.rmtree(room.root)
    write_atomic(room.sweep, json.dumps({"token": "xyz"}))
    assert "is another sweep's now" in watched.problem()
    assert "is another sweep's now" in watched.problem(), "and stays one"
    with pytest.raises(RoomLostError, match="this process ends and writes nothing more"):
        watched.check()


def test_a_room_that_is_absent_for_a_moment_is_waited_for(room: Room) -> None:
    clock = Clock()
    watched = RoomPresence(room, "abc", now=clock)
    room.root.rename(room.root.with_name("unmounted"))
    assert watched.problem() == ""
    assert watched.absent
    clock.now += GONE_SECONDS - 1
    assert watched.problem() == ""
    room.root.with_name("unmounted").rename(room.root)
    assert watched.problem() == ""
    assert not watched.absent
    shutil.rmtree(room.root)
    assert watched.problem() == ""
    clock.now += GONE_SECONDS
    assert watched.problem() == f"the room {room.root} was deleted"


def test_an_error_of_the_file_system_proves_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = RoomPresence(room, "abc")

    def fail(*words: Any) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fail)
        problem = watched.problem()
    assert problem == ""
    room.sweep.write_text("{torn")
    assert RoomPresence(room, "abc").problem() == ""


def test_a_sweep_of_an_old_version_has_an_empty_token(room: Room) -> None:
    write_atomic(room.sweep, json.dumps({"v": 1}))
    assert RoomPresence(room, "").problem() == ""
    assert room_token(room) == ""
    assert "another sweep's" in RoomPresence(room, "abc").problem()
    write_atomic(room.sweep, json.dumps({"token": "abc"}))
    assert "another sweep's" in RoomPresence(room, "").problem()


def test_a_lock_that_was_deleted_takes_the_name_away(room: Room) -> None:
    clock, lock = Clock(), room.worker("w0001").lock
    write_atomic(lock, "")
    watched = RoomPresence(room, "abc", lock, clock)
    assert watched.problem() == ""
    lock.unlink()
    assert watched.problem() == ""
    clock.now += GONE_SECONDS
    assert watched.problem() == f"{lock} was deleted"
