"""Uploads what one attempt of a worker writes.

Invariants: a checkpoint is uploaded after the reports that precede it, and an outcome after all other files of its
attempt. One thread at a time uploads reports. Standard library only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.room import AttemptDir, Room
from trainer.store.layout import AppendedFile, Owner, is_appended, owner
from trainer.store.objects import ObjectStore

# Inode, size in bytes and modification time in ns of a file: they change whenever a file of ours does.
FileStamp = tuple[int, int, int]


@dataclass(slots=True)
class AttemptSync:
    """What the store has of an attempt of this worker.

    Args:
        reported, bulked: when reports, and steps with the checkpoint, were last uploaded (monotonic clock, s).
        checkpoint: the stamp of the checkpoint that the store has.
        others: the stamps of all other files that the store has, by path.
    """

    room: Room
    files: AttemptDir
    reports: AppendedFile = field(init=False)
    steps: AppendedFile = field(init=False)
    reported: float = float("-inf")
    bulked: float = float("-inf")
    checkpoint: FileStamp | None = None
    others: dict[Path, FileStamp] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.reports = AppendedFile(self.files.reports, key_of(self.room, self.files.reports))
        self.steps = AppendedFile(self.files.steps, key_of(self.room, self.files.steps))

    def put_reports(self, store: ObjectStore) -> None:
        """Upload new reports; in one thread at a time, so that no older upload overwrites a newer one."""
        with self.lock:
            self.reports.put(store)

    def put_running(self, store: ObjectStore) -> None:
        """Upload the steps and the checkpoint of a running attempt."""
        self.put_checkpoint(store)
        self.steps.put(store)

    def put_ended(self, store: ObjectStore) -> None:
        """Upload everything of an ended attempt, its outcome last, and delete the local checkpoint."""
        outcome = self.files.outcome.read_bytes()
        if not self.files.fence.exists():  # of a fenced attempt, nobody would read it
            self.put_checkpoint(store)
            self.put_reports(store)
            self.steps.put(store)
            self.put_others(store)
        store.put(key_of(self.room, self.files.outcome), outcome)
        if self.checkpoint is not None and not self.files.checkpoint.exists():
            store.delete(key_of(self.room, self.files.checkpoint))  # no attempt resumes from it
        self.files.checkpoint.unlink(missing_ok=True)  # the store has it, and a worker may train many trials

    def put_checkpoint(self, store: ObjectStore) -> None:
        """Upload the checkpoint if the store has an older one, after the reports that precede it."""
        with suppress(FileNotFoundError), _snapshot(self.files.checkpoint) as snapshot:
            stamp = _stamp(snapshot)
            if stamp != self.checkpoint:
                self.put_reports(store)
                store.put(key_of(self.room, self.files.checkpoint), snapshot)
                self.checkpoint = stamp

    def put_others(self, store: ObjectStore) -> None:
        """Upload the adapter and all other files in the attempt's directory."""
        apart = {self.files.outcome, self.files.checkpoint}
        for path in sorted(self.files.path.rglob("*")):
            key = key_of(self.room, path)
            if not path.is_file() or path in apart or owner(key) is not Owner.WORKER or is_appended(key):
                continue
            with suppress(FileNotFoundError):
                stamp = _stamp(path)
                if self.others.get(path) != stamp:
                    store.put(key, path)
                    self.others[path] = stamp


def key_of(room: Room, path: Path) -> str:
    """The key of a file of a room."""
    return path.relative_to(room.root).as_posix()


@contextmanager
def _snapshot(path: Path) -> Iterator[Path]:
    """A second name of the file as it is now, since its writer may replace it during the upload."""
    name = path.with_name(f".{path.name}.put")
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except FileNotFoundError:
        raise
    except OSError:  # this file system has no links; an upload then reads the file that it has opened
        name = path
    try:
        yield name
    finally:
        if name != path:
            name.unlink(missing_ok=True)


def _stamp(path: Path) -> FileStamp:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
