"""A room: the directory of a sweep, through which its controller and its workers talk.

    <room>/sweep.json                       the frozen configuration (controller)
          /controller.lock                  held by the one controller
          /trials/00042/1/spec.json         attempt 1 of trial 42 (controller)
                         /stop              why it shall stop (controller)
                         /reports.jsonl     one line a token milestone (worker)
                         /steps.jsonl       one line an optimizer step (worker)
                         /checkpoint.pt     (worker)
                         /fence             a newer attempt took over: how much of the reports counts (controller)
                         /fenced.pt         the checkpoint from which that one goes on (moved by the controller)
                         /outcome.json      (worker, once)
                         /adapter/          the finished PEFT adapter (worker)
          /workers/w0001/inbox/00042-1      assignments (controller)
                        /drain              take no more (controller)
                        /job.json           the queue's handle (controller)
                        /lock               held while a local worker lives; its text is the process id (worker)
                        /exit               why it ended, where it had the time to say so (worker, once)
                        /beat               a counter (worker)
                        /slots              trials that it holds at a time, where it chooses by itself (worker)
                        /log                standard output and error (worker)
          /evaluations/trials, workers      the same again, of the evaluations: trial 42 there judges trial 42 here
                /trials/00042/asked         it shall be judged (controller)
                             /told.json     how that ended (controller)

Invariants: standard library only. Every file has one writer: an attempt has a directory of its own, so that a
fenced-out old attempt cannot write where a newer one does. Whole files appear by rename. Appended files are
read up to their last complete line. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

# What `drain` says where nobody waits for this worker any more: its job is not to begin at all.
UNWANTED = "unwanted"
LOCK_TRIES = 10
LOCK_PAUSE_SECONDS = 0.05


def write_atomic(path: Path, text: str | bytes, durable: bool = True) -> None:
    """Write a whole file so that a reader sees the old one or the new one, also after a crash.

    Args:
        durable: also after a power cut; not worth its milliseconds for what is soon written again.

    Raises:
        OSError: the disk is full or the directory is not writable; nothing is left behind.
    """
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str | None:
    """The text of a file, or None where it does not exist."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_json(path: Path) -> Any:
    """The JSON value of a file; None where the file is absent or no JSON."""
    text = read_text(path)
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


class Tail:
    """The complete lines of an appended file, each returned once.

    A torn last line (a writer died, or is writing) is kept for the next call and never returned half.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def lines(self, end: int | None = None) -> list[str]:
        """New complete lines; those that begin at or after byte `end` are never shown."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read() if end is None else file.read(max(0, end - self._offset))
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return complete.decode(errors="replace").splitlines()


def cut_torn_line(path: Path) -> None:
    """Cut off the line that a crash left torn at a file's end; for the file's one writer, before it goes on."""
    if path.exists():
        data = path.read_bytes()
        complete = data.rfind(b"\n") + 1
        if complete < len(data):
            with path.open("r+b") as file:
                file.truncate(complete)


def append_line(file: IO[str], line: str) -> None:
    """Append one line and hand it to the operating system at once, so that a killed writer loses nothing."""
    file.write(line + "\n")
    file.flush()


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """The files of one attempt."""

    path: Path

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def reports(self) -> Path:
        return self.path / "reports.jsonl"

    @property
    def steps(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def fence(self) -> Path:
        return self.path / "fence"

    @property
    def fenced(self) -> Path:
        return self.path / "fenced.pt"

    @property
    def outcome(self) -> Path:
        return self.path / "outcome.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def raise_fence(self) -> None:
        """Let nothing count that this attempt writes from now on; what it has written by now does.

        An attempt that is taken for lost may still be running: a node that lost its network, a job requeued while its
        first process goes on. The checkpoint is moved first, so that every milestone in it has a report that counts.
        """
        if self.fence.exists():
            return
        if not self.fenced.exists():
            with suppress(FileNotFoundError):
                self.checkpoint.replace(self.fenced)
        written = self.reports.read_bytes() if self.reports.exists() else b""
        write_atomic(self.fence, str(written.rfind(b"\n") + 1))

    def counted(self) -> int | None:
        """How many bytes of the reports count; None: all."""
        text = read_text(self.fence)
        return None if text is None else int(text)

    def resume_point(self) -> Path:
        """The checkpoint from which a later attempt goes on, whether or not it exists."""
        return self.fenced if self.fence.exists() else self.checkpoint


@dataclass(frozen=True, slots=True)
class WorkerDir:
    """The files of one worker."""

    path: Path

    @property
    def inbox(self) -> Path:
        return self.path / "inbox"

    @property
    def drain(self) -> Path:
        return self.path / "drain"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def beat(self) -> Path:
        return self.path / "beat"

    @property
    def exit(self) -> Path:
        return self.path / "exit"

    @property
    def slots(self) -> Path:
        return self.path / "slots"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def assignments(self) -> list[tuple[int, int]]:
        """Trial and attempt of everything ever put into the inbox, in order."""
        names = (entry.name.partition("-") for entry in _entries(self.inbox) if not entry.name.startswith("."))
        return sorted((int(trial), int(attempt)) for trial, _, attempt in names)

    def assign(self, trial: int, attempt: int) -> None:
        write_atomic(self.inbox / f"{trial:05d}-{attempt}", "", durable=False)


@dataclass(frozen=True, slots=True)
class Room:
    """Paths of a room; every method is a look or a name, none keeps state."""

    root: Path

    @property
    def sweep(self) -> Path:
        return self.root / "sweep.json"

    def trial(self, number: int) -> Path:
        return self.root / "trials" / f"{number:05d}"

    def attempt(self, trial: int, attempt: int) -> AttemptDir:
        return AttemptDir(self.trial(trial) / str(attempt))

    def attempts(self, trial: int) -> list[int]:
        """Numbers of the attempts that have a spec, ascending."""
        found = [int(entry.name) for entry in _entries(self.trial(trial)) if entry.name.isdigit()]
        return sorted(number for number in found if self.attempt(trial, number).spec.exists())

    def trials(self) -> list[int]:
        return sorted(int(entry.name) for entry in _entries(self.root / "trials") if entry.name.isdigit())

    def worker(self, name: str) -> WorkerDir:
        return WorkerDir(self.root / "workers" / name)

    def workers(self) -> list[str]:
        return sorted(entry.name for entry in _entries(self.root / "workers"))


@cache
def worker_number(name: str) -> int:
    """The number in a worker's name: 3 in `w0003`, and in `w0003r1`, which the job of `w0003` became when requeued."""
    found = re.match(r"w(\d+)", name)
    return int(found[1]) if found else 0


@contextmanager
def hold(path: Path, text: str) -> Iterator[bool]:
    """Hold an exclusive lock on a file while the block runs; yields False where another process holds it.

    The lock ends with the process, however it dies; the file's text says who holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        for _ in range(LOCK_TRIES):  # `held` takes the lock for a moment, which must not turn a holder away
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            yield False
            return
        file.truncate(0)
        append_line(file, text)
        yield True


def held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
