"""A sweep without space: it waits, counts nothing against a trial or a worker, and goes on by itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sweep.controller import disk
from sweep.controller.disk import NOTICE_BYTES, Notice, RoomDisk, has_space, notice_path, read_notice
from sweep.errors import GiveUp
from sweep.model.effects import Assign, Cancel, Effect, Finish, Tell
from sweep.model.states import Ending, Finished, JobState, Mode
from tests.helpers.hand_played import HandClock, HandPlayed
from trainer.contract import FailureKind, Outcome, OutcomeKind
from trainer.room import Room

NO_SPACE = Outcome(OutcomeKind.FAILED, "OSError: No space left on device", failure=FailureKind.NO_SPACE)
COMPLETED = Outcome(OutcomeKind.COMPLETED)


class Space:
    """Whether there is space, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.probes = True, 0
        monkeypatch.setattr(disk, "has_space", self.probe)

    def probe(self, directory: Path) -> bool:
        self.probes += 1
        return self.left


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Space:
    return Space(monkeypatch)


def starts(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, Assign)]


def test_a_trial_that_finds_no_space_ten_times_is_complete_in_the_end(rooms: Path, space: Space) -> None:
    played = HandPlayed(rooms)
    played.begin()
    for number in range(1, 11):
        space.left = False
        played.end(NO_SPACE)
        assert starts([*played.rounds(), *played.rounds_for(180)]) == [], "the disk is full for three minutes"
        space.left = True
        assert starts(played.rounds_for(400)) == [Assign(0, number + 1, "w0001")]
    played.report(1, 2.5, final=True)
    played.end(COMPLETED)
    assert Tell(0, Ending.COMPLETE, "") in played.rounds()


def test_while_no_space_is_left_no_silent_worker_is_cancelled_and_then_all_get_their_time(
    rooms: Path, space: Space
) -> None:
    played = HandPlayed(rooms)
    played.begin()
    space.left = False
    assert played.rounds_for(3600, beats=False) == []
    assert played.controller.observer.observe().no_space == f"no space left in {played.room.root}"
    space.left = True
    assert [e for e in played.rounds_for(100, beats=False) if isinstance(e, Cancel)] == []
    assert [e for e in played.rounds_for(100, beats=False) if isinstance(e, Cancel)]


def test_workers_that_could_not_start_without_space_do_not_end_the_sweep(rooms: Path, space: Space) -> None:
    played = HandPlayed(rooms, "queue.workers=4", "search.trials=8")
    played.rounds()
    space.left = False
    played.clock.time += 10
    for name, job in list(played.dispatcher.jobs.items()):
        played.dispatcher.jobs[name] = type(job)(job.place, JobState.GONE)
    assert played.rounds() == []
    space.left = True
    effects = played.rounds_for(60)
    assert not [effect for effect in effects if isinstance(effect, Finish)]
    assert starts(effects)


@pytest.mark.parametrize("mode", [Mode.STOP, Mode.DETACH])
def test_a_sweep_that_is_told_to_end_while_it_waits_ends_with_that_word(rooms: Path, space: Space, mode: Mode) -> None:
    played = HandPlayed(rooms)
    played.begin()
    played.end(NO_SPACE)
    space.left = False
    assert played.rounds_for(30) == []
    played.mode = mode
    for name, job in list(played.dispatcher.jobs.items()):
        played.dispatcher.jobs[name] = type(job)(job.place, JobState.GONE)
    (finish,) = played.controller.step()
    assert finish == Finish(Finished.FAILED, f"no space left in {played.room.root}; free some, then `sweep resume`")


def test_a_worker_s_own_full_disk_delays_the_next_attempt_longer_each_time(tmp_path: Path, space: Space) -> None:
    clock = HandClock()
    watched, delays = RoomDisk(Room(tmp_path), clock), []
    for _ in range(9):
        watched.failed("OSError: No space left on device: '/scratch'")
        began = clock.time
        while text := watched.no_space():
            assert "/scratch" in text
            clock.time += 1
        delays.append(clock.time - began)
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    clock.time += 1000
    watched.failed("again")
    began = clock.time
    while watched.no_space():
        clock.time += 1
    assert clock.time - began == 5


def test_a_full_disk_is_probed_at_growing_intervals(tmp_path: Path, space: Space) -> None:
    clock = HandClock()
    watched = RoomDisk(Room(tmp_path), clock)
    for _ in range(100):
        watched.no_space()
        clock.time += 0.1
    assert space.probes == 2, "every five seconds"
    space.left, space.probes = False, 0
    for _ in range(3000):
        watched.no_space()
        clock.time += 0.1
    assert 12 <= space.probes <= 16
    space.left = True
    clock.time += 30
    assert watched.no_space() == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_probe_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    assert has_space(tmp_path)

    def full(handle: int) -> None:
        raise OSError(number, "")

    monkeypatch.setattr("os.fsync", full)
    assert not has_space(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_space_is_not_taken_for_it(tmp_path: Path) -> None:
    assert has_space(tmp_path / "absent")


def test_a_notice_is_written_into_space_that_is_there(tmp_path: Path) -> None:
    room = Room(tmp_path)
    notice = Notice(room)
    before = notice_path(room).stat()
    assert read_notice(room) == ""
    notice.say("no space left in /rooms/ü; the sweep waits")
    assert read_notice(room) == "no space left in /rooms/ü; the sweep waits"
    notice.say("x" * 5000)
    notice.say("")
    after = notice_path(room).stat()
    assert read_notice(room) == ""
    assert (after.st_ino, after.st_size, after.st_blocks) == (before.st_ino, NOTICE_BYTES, before.st_blocks)


def test_a_sweep_without_space_is_given_up_after_the_limit(tmp_path: Path, space: Space) -> None:
    clock = HandClock()
    room_disk = RoomDisk(Room(tmp_path), clock, limit=3600.0)
    space.left = False
    assert room_disk.no_space()
    clock.time += 3000
    assert room_disk.no_space()
    space.left = True  # in between: the time begins anew
    clock.time += 60
    assert room_disk.no_space() == ""
    space.left = False
    clock.time += 60
    assert room_disk.no_space()
    clock.time += 3000
    assert room_disk.no_space()
    clock.time += 700
    with pytest.raises(GiveUp, match=r"no space left in .* for 1 hours; free some, then `sweep resume`"):
        room_disk.no_space()


def test_a_worker_that_never_has_space_ends_the_sweep_too(tmp_path: Path, space: Space) -> None:
    clock = HandClock()
    room_disk = RoomDisk(Room(tmp_path), clock, limit=3600.0)
    with pytest.raises(GiveUp, match="a worker had no space left: No space left on device"):
        for _ in range(100):
            room_disk.failed("No space left on device")
            room_disk.no_space()
            clock.time += 120


def test_a_probe_follows_no_link_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, room = tmp_path / "outside", tmp_path / "room"
    room.mkdir()
    outside.write_text("the owner's")
    for name in (".space", "waits"):
        (room / name).symlink_to(outside)
    assert has_space(room)
    Notice(Room(room)).say("waits")
    assert outside.read_text() == "the owner's"
    assert sorted(path.name for path in room.iterdir()) == [".space", "waits"]
