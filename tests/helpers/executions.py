"""Marks that the processes of attempts leave, and the check that no trial was ever trained by two of them at once.

An execution is one process that trains one attempt. When it begins, it takes a lock of its trial and appends a line to
a log; when it ends, it appends another line and releases the lock.

Invariants: the process itself leaves the marks, so they say what ran, and not what the controller believes. The kernel
releases the lock of a process that dies, so an execution that was killed stops to count at that moment, although it
left no second line. Times are those of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from trainer.room import append_line, read_text

EXITING = 0x4  # PF_EXITING of the flags in /proc/PID/stat: the process runs nothing of its program any more
PAUSE_SECONDS = 0.002
END_SECONDS = 20.0  # between an outcome, or a fence, and the end of its process on a busy machine


@dataclass(frozen=True, slots=True)
class Mark:
    """A line of the log.

    Args:
        what: `begin` or `end`.
        at: when, in nanoseconds on the monotonic clock.
        beside: the process that trained the same trial at that moment; None if there was none.
    """

    what: str
    trial: int
    attempt: int
    pid: int
    at: int
    beside: int | None = None


def executions_dir(root: Path) -> Path:
    """The directory of the marks of a room."""
    return root / "executions"


@contextmanager
def marked(directory: Path, trial: int, attempt: int) -> Iterator[None]:
    """Leave the marks of an execution while the block runs."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"trial-{trial:05d}.lock").open("a+") as lock, (directory / "log").open("a") as log:
        beside = _take(lock)
        _append(log, Mark("begin", trial, attempt, os.getpid(), time.monotonic_ns(), beside))
        yield
        _append(log, Mark("end", trial, attempt, os.getpid(), time.monotonic_ns()))


def read_marks(directory: Path) -> list[Mark]:
    """All marks, in the order in which they were left."""
    return [Mark(**json.loads(line)) for line in (read_text(directory / "log") or "").splitlines()]


def check_executions(directory: Path, overlapping: Collection[int] = (), seconds: float = END_SECONDS) -> None:
    """No trial was trained by two processes at once, and no attempt twice; and none goes on being trained.

    Args:
        overlapping: trials of which an attempt may have trained beside a later one, since nobody could end it: its
            node was silent, or its job was taken after all. A fence or a run of its own keeps it apart.
        seconds: how long a process may take that has an end, but has not left it yet.

    Raises:
        AssertionError: it names the trial, the attempts and the processes.
    """
    begun, ended = _begun_and_ended(directory)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_goes_on(mark, ended) for mark in begun):
        time.sleep(0.05)
        begun, ended = _begun_and_ended(directory)
    assert begun, f"{directory} has no marks: nothing was trained, or nobody left any"
    twice = [key for key, count in Counter((mark.trial, mark.attempt) for mark in begun).items() if count > 1]
    assert not twice, f"trained twice, as (trial, attempt): {twice}"
    for mark in begun:
        where = f"trial {mark.trial}: process {mark.pid} began attempt {mark.attempt}"
        assert mark.beside is None or mark.trial in overlapping, f"{where} at the same time as process {mark.beside}"
        assert not _goes_on(mark, ended), f"{where}, and still trains it"
    _check_times([mark for mark in begun if mark.trial not in overlapping], ended)


def _begun_and_ended(directory: Path) -> tuple[list[Mark], dict[tuple[int, int, int], int]]:
    """The marks of beginnings, and when which execution ended."""
    marks = read_marks(directory)
    ended = {(mark.trial, mark.attempt, mark.pid): mark.at for mark in marks if mark.what == "end"}
    return [mark for mark in marks if mark.what == "begin"], ended


def _goes_on(mark: Mark, ended: Collection[tuple[int, int, int]]) -> bool:
    return (mark.trial, mark.attempt, mark.pid) not in ended and _runs(mark.pid)


def _check_times(begun: list[Mark], ended: dict[tuple[int, int, int], int]) -> None:
    """The same by the times alone, as far as they were left: an execution begins after those before it have ended."""
    until: dict[int, tuple[int, Mark]] = {}
    for mark in sorted(begun, key=lambda mark: mark.at):
        end, earlier = until.get(mark.trial, (0, mark))
        assert mark.at >= end, f"trial {mark.trial}: {mark} began before the end of {earlier}, at the same time"
        own = ended.get((mark.trial, mark.attempt, mark.pid), mark.at)
        until[mark.trial] = max((end, earlier), (own, mark), key=lambda pair: pair[0])


def _take(lock: IO[str]) -> int | None:
    """Take the lock of a trial; the process that holds it, if one that runs its program does."""
    while True:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            append_line(lock, str(os.getpid()))
            return None
        lock.seek(0)
        holder = lock.read().strip()
        if holder.isdigit() and _runs(int(holder)):
            return int(holder)
        time.sleep(PAUSE_SECONDS)  # the kernel is closing the files of a process that was killed


def _runs(pid: int) -> bool:
    """Whether a process runs its program, or could: one that is about to be gone does not."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in "ZX" and not int(rest[5]) & EXITING


def _append(log: IO[str], mark: Mark) -> None:
    append_line(log, json.dumps(asdict(mark)))
