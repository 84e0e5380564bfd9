"""The room's files: whole or absent, appended ones read line by line, locks that end with their process."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer import locks
from trainer import room as room_module
from trainer.room import (
    AttemptDir,
    LineFile,
    Room,
    Tail,
    append_line,
    held,
    hold,
    read_json,
    read_text,
    worker_number,
    write_atomic,
)

FAST = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
REPOSITORY = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from trainer.room import hold
with hold(Path(sys.argv[1]), "somebody") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that says whether it got the lock, and keeps it until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- whole files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(("data", "stored"), [("new ü", "new ü".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_write_atomic_writes_the_whole_file(tmp_path: Path, old: str | None, data: str | bytes, stored: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    if old is not None:
        write_atomic(path, old)
    write_atomic(path, data)
    assert path.read_bytes() == stored
    assert names(path.parent) == ["file"]


def no_space(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace"), (os, "open")], ids=["fsync", "rename", "open"]
)
def test_a_failed_write_keeps_the_old_file_and_leaves_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str | None
) -> None:
    path = tmp_path / "file"
    if old is not None:
        write_atomic(path, old)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, no_space)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, "new")
    assert read_text(path) == old
    assert names(tmp_path) == (["file"] if old is not None else [])
    write_atomic(path, "new")  # and works again once there is space
    assert read_text(path) == "new"


def test_a_write_is_durable_together_with_the_names_of_the_file_and_of_its_new_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace
    (tmp_path / "old").mkdir()

    def synced(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(tmp_path / "old" / "new" / "newer" / "file", "x")
    assert re.fullmatch(r"\.file\.[0-9a-f]{16}", events[0])
    assert events[1:] == ["rename", "newer", "new", "old"]
    events.clear()
    write_atomic(tmp_path / "old" / "new" / "newer" / "file", "y")
    assert events[1:] == ["rename", "newer"]
    events.clear()
    write_atomic(tmp_path / "old" / "new" / "file", "x", durable=False)
    assert events == ["rename"]


def test_a_file_system_that_does_not_sync_directories_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomic(tmp_path / "file", "x")
    assert read_text(tmp_path / "file") == "x"


def test_bytes_that_are_no_text_are_read_as_text_with_replacements(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff{\x00")
    assert read_text(tmp_path / "file") == "\ufffd{\x00"
    assert read_json(tmp_path / "file") is None


# --- appended lines -----------------------------------------------------------------------------------------------


def nearly_full(monkeypatch: pytest.MonkeyPatch, free: int) -> list[int]:
    """Make every write after these many bytes fail, as a full disk does; the bytes that fit are written."""
    left, write = [free], os.write

    def limited(handle: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
    return left


def test_a_line_that_does_not_fit_is_cut_off_and_may_be_appended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tail = LineFile(tmp_path / "lines"), Tail(tmp_path / "lines")
    file.append("first")
    left = nearly_full(monkeypatch, 4)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            file.append("second")
        assert (tmp_path / "lines").read_text() == "first\n"
    left[0] = 5
    with pytest.raises(OSError, match="No space"):
        file.append("second")
    left[0] = 1000
    file.append("second", durable=True)
    file.sync()
    file.close()
    assert tail.lines() == ["first", "second"]


def test_a_line_that_a_crash_has_torn_is_cut_off_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("first\nsec")
    file = LineFile(tmp_path / "lines")
    file.append("second")
    file.close()
    assert (tmp_path / "lines").read_text() == "first\nsecond\n"


def test_write_atomic_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "")
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file" / "below", "")
    assert names(tmp_path) == ["file"]


def test_an_absent_file_reads_as_none(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "x")
    for path in (tmp_path / "absent", tmp_path / "file" / "below", tmp_path / "no" / "folder"):
        assert read_text(path) is None
        assert read_json(path) is None


@pytest.mark.parametrize(("text", "value"), [('{"a": 1}', {"a": 1}), ("[]", []), ("{", None), ("", None), ("x", None)])
def test_read_json(tmp_path: Path, text: str, value: Any) -> None:
    write_atomic(tmp_path / "file", text)
    assert read_json(tmp_path / "file") == value


# --- appended files -----------------------------------------------------------------------------------------------


def test_tail_keeps_a_torn_line_for_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    seen = []
    assert tail.lines() == []  # not there yet
    for piece in (b"one\ntw", b"o", b"\n", b"", b"three\n\nfour"):
        with path.open("ab") as file:
            file.write(piece)
        seen.append(tail.lines())
    assert seen == [["one"], [], ["two"], [], ["three", ""]]
    assert Tail(path).lines() == ["one", "two", "three", ""]  # another reader begins at the beginning


# What JSON lines consist of, and letters of several bytes, whose middle a write may end in.
pieces = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), max_size=8)


@FAST
@given(lines=st.lists(pieces, max_size=6), rest=pieces, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_tail_returns_every_complete_line_once_however_the_stream_is_cut(
    tmp_path: Path, lines: list[str], rest: str, cuts: list[int]
) -> None:
    stream = "".join(f"{line}\n" for line in lines).encode() + rest.encode()
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    path = tmp_path / "stream"
    path.write_bytes(b"")
    tail = Tail(path)
    seen: list[str] = []
    start = 0
    for end in ends:
        with path.open("ab") as file:
            file.write(stream[start:end])
        seen += tail.lines()
        assert seen == lines[: stream[:end].count(b"\n")]
        start = end
    assert seen == lines


def test_append_line_is_seen_before_the_file_is_closed(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "lines")
    with (tmp_path / "lines").open("a") as file:
        append_line(file, "one")
        assert tail.lines() == ["one"]
        append_line(file, "two")
        assert tail.lines() == ["two"]


# --- locks --------------------------------------------------------------------------------------------------------


def test_hold_and_held_within_one_process(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    assert not held(lock)
    assert not lock.parent.exists()  # looking makes nothing
    lock.parent.mkdir()
    with hold(lock, "42") as mine:
        assert mine
        assert held(lock)
        assert lock.read_text() == "42\n"
    assert not held(lock)
    with hold(lock, "7") as mine:
        assert mine
        assert lock.read_text() == "7\n"  # only the last holder


def test_the_block_of_a_held_lock_may_fail(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(KeyError), hold(lock, "") as mine:
        assert mine
        raise KeyError("inside")
    assert not held(lock)


def test_another_process_is_turned_away_and_leaves_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_PAUSE_SECONDS", 0.0)
    lock = tmp_path / "lock"
    with hold(lock, "me"), holder(lock) as other:
        assert said(other) == "False"
        assert lock.read_text() == "me\n"
    with holder(lock) as other:
        assert said(other) == "True"
        assert held(lock)
        with hold(lock, "me") as mine:
            assert not mine
        assert lock.read_text() == "somebody\n"


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.terminate], ids=["SIGKILL", "SIGTERM"])
def test_a_lock_is_free_after_its_holder_was_killed(
    tmp_path: Path, end: Callable[[subprocess.Popen[str]], None]
) -> None:
    lock = tmp_path / "lock"
    with holder(lock) as other:
        assert said(other) == "True"
        end(other)
        assert other.wait() in (-signal.SIGKILL, -signal.SIGTERM)
        assert not held(lock)
        with hold(lock, "next") as mine:
            assert mine


def test_a_moment_of_held_does_not_turn_a_holder_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`held` takes the lock for an instant; `hold` tries again."""
    lock = tmp_path / "lock"
    real = fcntl.flock
    refusals = iter([True, True])

    def flock(file: Any, how: int) -> None:
        if next(refusals, False):
            raise BlockingIOError
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "LOCK_PAUSE_SECONDS", 0.0)
    with hold(lock, "") as mine:
        assert mine


# --- names --------------------------------------------------------------------------------------------------------


def test_attempts_are_those_with_a_spec_in_numeric_order(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.attempts(3) == []
    for number in (10, 2, 1):
        write_atomic(room.attempt(3, number).spec, "{}")
    room.attempt(3, 4).path.mkdir()  # no spec yet
    write_atomic(room.trial(3) / "notes", "")
    assert room.attempts(3) == [1, 2, 10]


def test_trials_are_in_numeric_order(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.trials() == []
    for number in (123456, 7, 10):
        room.trial(number).mkdir(parents=True)
    write_atomic(tmp_path / "trials" / "README", "")
    assert room.trials() == [7, 10, 123456]
    assert room.trial(7).name == "00007"


def test_workers_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.workers() == []
    for name in ("w0010", "w0002"):
        write_atomic(room.worker(name).job, "{}")
    assert room.workers() == ["w0002", "w0010"]


def test_the_files_of_a_room_have_the_documented_names(tmp_path: Path) -> None:
    room = Room(tmp_path)
    attempt, worker = room.attempt(42, 1), room.worker("w0001")
    found = [room.sweep, attempt.spec, attempt.stop, attempt.reports, attempt.steps, attempt.checkpoint]
    found += [attempt.outcome, attempt.adapter, worker.inbox, worker.drain, worker.job, worker.lock, worker.beat]
    found += [worker.log]
    documented = room_module.__doc__ or ""
    for path in found:
        assert f"/{path.name}" in documented
        assert path.is_relative_to(tmp_path)
    assert len(set(found)) == len(found)
    assert attempt.path == tmp_path / "trials" / "00042" / "1"


def test_assignments_are_those_of_assign_in_order(tmp_path: Path) -> None:
    worker = Room(tmp_path).worker("w0001")
    assert worker.assignments() == []
    given_out = [(2, 1), (3, 1), (2, 2), (10, 1), (99999, 1)]
    for trial, attempt in reversed(given_out):
        worker.assign(trial, attempt)
    worker.assign(3, 1)  # safe to repeat
    (worker.inbox / ".00042-1.77").touch()  # another process is writing it
    assert worker.assignments() == sorted(given_out)


@pytest.mark.parametrize("given_out", [[(1, 2), (1, 10)], [(99999, 1), (100000, 1)]], ids=["attempt 10", "100000"])
def test_assignments_are_in_numeric_order(tmp_path: Path, given_out: list[tuple[int, int]]) -> None:
    worker = Room(tmp_path).worker("w0001")
    for trial, attempt in given_out:
        worker.assign(trial, attempt)
    assert worker.assignments() == given_out


# --- fences -------------------------------------------------------------------------------------------------------


def reports_of(attempt: AttemptDir) -> list[str]:
    return Tail(attempt.reports).lines(attempt.counted())


def test_nothing_counts_that_is_written_behind_a_fence(tmp_path: Path) -> None:
    attempt = Room(tmp_path).attempt(0, 1)
    write_atomic(attempt.reports, "one\ntwo\nthr")
    write_atomic(attempt.checkpoint, "at two")
    assert attempt.counted() is None
    assert attempt.resume_point().read_text() == "at two"
    attempt.raise_fence()
    with attempt.reports.open("a") as late:
        late.write("ee\nfour\n")
    write_atomic(attempt.checkpoint, "at four")
    assert reports_of(attempt) == ["one", "two"]
    assert attempt.resume_point().read_text() == "at two"
    attempt.raise_fence()
    assert reports_of(attempt) == ["one", "two"], "a fence that stands is not moved"


def test_a_fence_before_anything_was_written_lets_nothing_through(tmp_path: Path) -> None:
    attempt = Room(tmp_path).attempt(0, 1)
    attempt.path.mkdir(parents=True)
    attempt.raise_fence()
    write_atomic(attempt.reports, "late\n")
    write_atomic(attempt.checkpoint, "late")
    assert reports_of(attempt) == []
    assert not attempt.resume_point().exists()


def test_a_fence_that_was_half_raised_is_finished_with_the_first_checkpoint(tmp_path: Path) -> None:
    """The controller died after it had moved the checkpoint; the old attempt wrote another one since."""
    attempt = Room(tmp_path).attempt(0, 1)
    write_atomic(attempt.reports, "one\n")
    write_atomic(attempt.fenced, "at one")
    write_atomic(attempt.checkpoint, "later")
    attempt.raise_fence()
    assert attempt.resume_point().read_text() == "at one"


@given(st.lists(st.text("ab", max_size=4), max_size=6), st.integers(0, 40))
def test_a_tail_shows_the_lines_before_its_end_and_no_others(lines: list[str], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines"
        text = "".join(f"{line}\n" for line in lines)
        path.write_text(text)
        whole = text[:cut].rpartition("\n")[0]
        tail = Tail(path)
        assert tail.lines(cut) == (whole.split("\n") if "\n" in text[:cut] else [])
        assert tail.lines(cut) == []


@pytest.mark.parametrize(("name", "number"), [("w0003", 3), ("w0003r1", 3), ("w12345r10", 12345), ("x", 0)])
def test_a_worker_s_number(name: str, number: int) -> None:
    assert worker_number(name) == number
