"""What a process sees of a lock that it may not write, and how files are written that nobody else may redirect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.files import LineFile, check_inside, cut_torn_line, set_aside, stale_scratch, write_atomic
from trainer.locks import LockState, hold, lock_state, take_lock

STATE = (
    "from pathlib import Path; import sys; from trainer.locks import lock_state; print(lock_state(Path(sys.argv[1])))"
)
NOBODY = 65534


def test_a_lock_is_seen_by_a_process_that_may_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that is mounted read-only: no open for writing succeeds."""
    lock, real = tmp_path / "lock", os.open

    def read_only(path: Path, flags: int, *more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *more)

    with hold(lock, "me"):
        monkeypatch.setattr(os, "open", read_only)
        assert lock_state(lock) is LockState.HELD
        monkeypatch.undo()
    monkeypatch.setattr(os, "open", read_only)
    assert lock_state(lock) is LockState.FREE
    with pytest.raises(OSError, match="Read-only"):
        take_lock(lock)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "seen"), [(0o644, "held"), (0o600, "cannot be seen")])
def test_another_user_sees_what_the_file_s_mode_allows(mode: int, seen: str) -> None:
    """A lock that cannot be opened is neither held nor free."""
    lock = Path(f"/tmp/sweep-test-lock-{os.getpid()}")
    try:
        with hold(lock, "me"):
            lock.chmod(mode)
            reading, writing = os.pipe()
            if (child := os.fork()) == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                os.write(writing, lock_state(lock).value.encode())
                os._exit(0)
            os.waitpid(child, 0)
            assert os.read(reading, 100).decode() == seen
    finally:
        lock.unlink()


def test_what_is_no_file_cannot_be_seen(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("directory", "loop", "pipe"):
        assert lock_state(tmp_path / name) is LockState.UNSEEN
        with pytest.raises(OSError):
            take_lock(tmp_path / name)


def test_two_who_look_do_not_see_each_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    shared = os.open(lock, os.O_RDONLY)
    import fcntl

    fcntl.flock(shared, fcntl.LOCK_SH)
    assert lock_state(lock) is LockState.FREE
    os.close(shared)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside, room = tmp_path / "outside", tmp_path / "room"
    room.mkdir()
    outside.write_text("the owner's\n")
    for name in ("reports.jsonl", "lock", "waits"):
        (room / name).symlink_to(outside)
    with pytest.raises(OSError):
        LineFile(room / "reports.jsonl")
    with pytest.raises(OSError):
        cut_torn_line(room / "reports.jsonl")
    with pytest.raises(OSError):
        take_lock(room / "lock")
    write_atomic(room / "waits", "x", root=room)  # the link itself is replaced
    assert not (room / "waits").is_symlink()
    assert outside.read_text() == "the owner's\n"


def test_nothing_is_written_below_a_link_out_of_the_room(tmp_path: Path) -> None:
    outside, room = tmp_path / "outside", tmp_path / "room"
    outside.mkdir()
    (room / "inner").mkdir(parents=True)
    (room / "trials").symlink_to(outside)
    (room / "kept").symlink_to("inner")
    with pytest.raises(OSError, match="leads out of the room"):
        write_atomic(room / "trials" / "00001" / "1" / "spec.json", "{}", root=room)
    assert list(outside.iterdir()) == []
    write_atomic(room / "kept" / "file", "x", root=room)  # it stays inside
    with pytest.raises(OSError):
        check_inside(room / ".." / "elsewhere", room)


def test_a_scratch_name_is_never_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    monkeypatch.setattr("trainer.files.secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".file.{'0' * 16}").symlink_to(outside)
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "file", "secret")
    assert not outside.exists()


def test_a_scratch_file_is_no_wider_than_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_half_written_files_are_known_by_name_and_age(tmp_path: Path) -> None:
    old = [tmp_path / f".spec.json.{'a1' * 8}", tmp_path / ".outcome.json.4711"]
    for path in (*old, tmp_path / ".tags", tmp_path / "spec.json"):
        path.write_text("")
        os.utime(path, (0, 0))
    (tmp_path / f".spec.json.{'b2' * 8}").write_text("")  # somebody is writing it
    assert stale_scratch(tmp_path) == sorted(old)


def test_a_directory_in_a_file_s_place_is_renamed_within_a_room(tmp_path: Path) -> None:
    (tmp_path / "stop").mkdir()
    (tmp_path / "stop" / "kept").write_text("x")
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "stop", "pruned")
    write_atomic(tmp_path / "stop", "pruned", root=tmp_path)
    assert (tmp_path / "stop").read_text() == "pruned"
    assert (tmp_path / "stop.damaged-1" / "kept").read_text() == "x"
    assert set_aside(tmp_path / "stop").name == "stop.damaged-2"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_holder_in_another_process_is_seen(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock, "me"):
        done = subprocess.run([sys.executable, "-c", STATE, str(lock)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "held"
