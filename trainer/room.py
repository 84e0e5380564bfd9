"""A room: the directory through which the controller and the workers of a sweep communicate.

    <room>/sweep.json                       the frozen configuration (controller)
          /controller.lock                  held by the one controller
          /waits                            what the controller waits for, if not for its workers (controller)
          /trials/00042/1/spec.json         attempt 1 of trial 42 (controller)
                         /stop              the cause of a stop, and its reason (controller)
                         /reports.jsonl     one line for each token milestone (worker)
                         /steps.jsonl       one line for each optimizer step (worker)
                         /checkpoint.pt     (worker)
                         /fence             a newer attempt replaced it: how many bytes of reports count (controller)
                         /fenced.pt         the checkpoint from which the newer one resumes (moved by the controller)
                         /outcome.json      (worker, once)
                         /adapter/          the finished PEFT adapter (worker)
          /workers/w0001/inbox/00042-1      assignments (controller)
                        /drain              do not take further assignments (controller)
                        /job.json           the handle of its job in the queue (controller)
                        /lock               held while a local worker lives; the text says which process (worker)
                        /exit               why it ended, if it had the time to write that (worker, once)
                        /beat               a counter (worker)
                        /slots              how many trials it holds at a time, if it chooses by itself (worker)
                        /log                standard output and error (worker)
          /evaluations/trials, workers      the same for evaluations: trial 42 there scores trial 42 here
                /trials/00042/asked         that it must be evaluated (controller)
                             /told.json     the result of its evaluation (controller)

Invariants: standard library only. Every file has one writer. Every attempt has a directory of its own, so that an old
attempt behind a fence cannot write to the files of a newer one. Whole files appear by rename. Appended files are read
up to their last complete line. A worker syncs a report before the checkpoint that follows it, and everything before the
outcome, so that no later file survives a power cut without the earlier ones. Nothing is pickled.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer.files import (
    LineFile,
    Tail,
    append_line,
    cut_torn_line,
    held,
    hold,
    make_directory,
    make_private_directory,
    read_json,
    read_text,
    sync_tree,
    take_lock,
    write_atomic,
    write_lock,
)
from trainer.names import is_name

__all__ = [
    "UNWANTED",
    "AttemptDir",
    "LineFile",
    "Room",
    "Tail",
    "WorkerDir",
    "append_line",
    "cut_torn_line",
    "held",
    "hold",
    "make_directory",
    "make_private_directory",
    "read_json",
    "read_text",
    "sync_tree",
    "take_lock",
    "worker_number",
    "write_atomic",
    "write_lock",
]

# The content of `drain` if no controller waits for this worker any more: its job must not begin at all.
UNWANTED = "unwanted"

_NUMBER = re.compile(r"[0-9]+")
_ASSIGNMENT = re.compile(r"([0-9]+)-([0-9]+)")


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
        """Let the reports that this attempt has written count, and none that it writes from now on.

        An attempt that counts as lost may still be running, for example on a node that lost its network, or in the
        first process of a job that was requeued. The checkpoint is moved first, so that every milestone in it has a
        report that counts.
        """
        if self.fence.exists():
            return
        if not self.fenced.exists():
            with suppress(FileNotFoundError):
                self.checkpoint.replace(self.fenced)
        written = self.reports.read_bytes() if self.reports.exists() else b""
        write_atomic(self.fence, str(written.rfind(b"\n") + 1), root=self.path)

    def counted(self) -> int | None:
        """How many bytes of the reports count; None if all do."""
        text = read_text(self.fence)
        return None if text is None else int(text)

    def resume_point(self) -> Path:
        """The path of the checkpoint from which a later attempt resumes, whether or not it exists."""
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
        """Trial and attempt of every assignment that the inbox ever had, in order."""
        matches = (_ASSIGNMENT.fullmatch(entry.name) for entry in _entries(self.inbox))
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def assign(self, trial: int, attempt: int) -> None:
        """Put an attempt into the inbox."""
        room = self.path.parent.parent
        write_atomic(self.inbox / f"{trial:05d}-{attempt}", "", durable=False, root=room)


@dataclass(frozen=True, slots=True)
class Room:
    """The paths of a room. Every method names a path or reads a directory; none keeps state."""

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
        numbers = [int(entry.name) for entry in _entries(self.trial(trial)) if _NUMBER.fullmatch(entry.name)]
        return sorted(number for number in numbers if self.attempt(trial, number).spec.exists())

    def trials(self) -> list[int]:
        return sorted(int(entry.name) for entry in _entries(self.root / "trials") if _NUMBER.fullmatch(entry.name))

    def worker(self, name: str) -> WorkerDir:
        """The files of a worker.

        Raises:
            ValueError: the name would lead out of the room.
        """
        if name and not is_name(name):
            raise ValueError(f"{name!r} cannot be the name of a worker")
        return WorkerDir(self.root / "workers" / name)

    def workers(self) -> list[str]:
        return sorted(entry.name for entry in _entries(self.root / "workers") if is_name(entry.name))


@cache
def worker_number(name: str) -> int:
    """The number in a worker's name: 3 in `w0003`, and in `w0003r1`, which is the job of `w0003` after a requeue."""
    match = re.match(r"w(\d+)", name)
    return int(match[1]) if match else 0


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
