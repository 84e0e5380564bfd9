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
                         /answers/f1.4.jsonl  the answers of a metric at milestone 4; 0: of the base (worker)
                         /metrics/NAME.log  what the program of a metric printed last (worker)
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

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from trainer.files import (
    OWN_FILE,
    LineFile,
    Tail,
    append_line,
    check_inside,
    cut_torn_line,
    make_directory,
    make_private_directory,
    remove_stale_scratch,
    set_aside,
    stale_scratch,
    sync_tree,
    write_atomic,
)
from trainer.locks import LockState, held, hold, lock_state, open_lock, take_lock, write_lock
from trainer.names import is_name
from trainer.reading import (
    ABSENT,
    NOT_THE_VALUE,
    Damage,
    DamageKind,
    json_object,
    open_file,
    read,
    read_bytes,
    read_json,
    read_object,
    read_text,
    reason_of,
    usable,
)

__all__ = [
    "NOT_THE_VALUE",
    "OWN_FILE",
    "UNWANTED",
    "AttemptDir",
    "Damage",
    "DamageKind",
    "LineFile",
    "LockState",
    "Room",
    "Tail",
    "WorkerDir",
    "append_line",
    "check_inside",
    "cut_torn_line",
    "held",
    "hold",
    "json_object",
    "lock_state",
    "make_directory",
    "make_private_directory",
    "open_file",
    "open_lock",
    "read",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "reason_of",
    "remove_stale_scratch",
    "set_aside",
    "stale_scratch",
    "sync_tree",
    "take_lock",
    "usable",
    "worker_number",
    "write_atomic",
    "write_lock",
]

# The content of `drain` if no controller waits for this worker any more: its job must not begin at all.
UNWANTED = "unwanted"

# Names of directories as the controller makes them: any other name is not its own, and nothing is read from there.
_TRIAL = re.compile(r"[0-9]{5}|[1-9][0-9]{5,8}")
_ATTEMPT = re.compile(r"[1-9][0-9]{0,5}")
_ASSIGNMENT = re.compile(rf"({_TRIAL.pattern})-({_ATTEMPT.pattern})")


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

    @property
    def answers(self) -> Path:
        return self.path / "answers"

    def answers_of(self, metric: str, milestone: int) -> Path:
        """The answers of a metric, whatever the characters of its name; milestone 0 is the base."""
        return self.answers / f"{quote(metric, safe='')}.{milestone}.jsonl"

    def metric_log(self, metric: str) -> Path:
        """What the program of a metric printed last."""
        return self.path / "metrics" / f"{quote(metric, safe='')}.log"

    def raise_fence(self) -> None:
        """Let the reports that this attempt has written count, and none that it writes from now on.

        An attempt that counts as lost may still be running, for example on a node that lost its network, or in the
        first process of a job that was requeued. The checkpoint is moved first, so that every milestone in it has a
        report that counts.
        """
        if os.path.lexists(self.fence):  # also if it is damaged: the checkpoint was moved before
            return
        if not self.fenced.exists():
            with suppress(FileNotFoundError):
                self.checkpoint.replace(self.fenced)
        write_atomic(self.fence, str(self.complete_bytes()), root=self.path)

    def complete_bytes(self) -> int:
        """How many bytes the complete lines of the reports take."""
        written = read_bytes(self.reports)
        return written.rfind(b"\n") + 1 if isinstance(written, bytes) else 0

    def counted(self) -> int | None:
        """How many bytes of the reports count; None if all do.

        Behind a fence that is damaged no report counts any more: the study has those that did.
        """
        end = self.read_fence()
        return 0 if isinstance(end, Damage) else end

    def read_fence(self) -> int | Damage | None:
        """What the fence says, its damage, or None if there is none.

        Raises:
            OSError: the file system fails, perhaps for a moment.
        """
        return read(self.fence, _byte_count)

    def resume_point(self) -> Path:
        """The path of the checkpoint from which a later attempt resumes, whether or not it exists."""
        return self.fenced if os.path.lexists(self.fence) else self.checkpoint


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
        """Numbers of the attempts that have a spec, ascending; a damaged one counts, since the attempt was made."""
        numbers = [int(entry.name) for entry in _entries(self.trial(trial)) if _ATTEMPT.fullmatch(entry.name)]
        return sorted(number for number in numbers if os.path.lexists(self.attempt(trial, number).spec))

    def trials(self) -> list[int]:
        return sorted(int(entry.name) for entry in _entries(self.root / "trials") if _TRIAL.fullmatch(entry.name))

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
    """What a directory holds; nothing if there is none, or something else stands in its place."""
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in (*ABSENT, errno.ELOOP):
            return []
        raise


def _byte_count(text: str) -> int:
    if not text.strip().isascii() or not 0 <= int(text) < 2**63:
        raise ValueError(f"{text[:20]!r} is no number of bytes")
    return int(text)
