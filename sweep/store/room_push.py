"""Puts what a controller has written into the object store of its room.

Invariants: files are put in an order in which each makes sense with those before it: the study before a specification,
a fence before the next attempt, a specification before its inbox entry. What the store has already is not put again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweep.store.keys import in_write_order, is_inbox_entry, is_written_once
from trainer.room import Room
from trainer.store.layout import CONTROLLER_TRIAL_FILES, AppendedFile, Owner, inbox_entry, is_appended, owner
from trainer.store.objects import ObjectStore

# The longest time for which a lazy push may hold back the study's journal.
JOURNAL_SECONDS = 60.0


@dataclass(slots=True)
class RoomPush:
    """The controller's files of a room, on their way to the store.

    Args:
        now: a monotonic clock in seconds.
        _journal_put_at: by key of an appended file, when it was last put.
        _fingerprints: by key, the fingerprint of the file that the store has.
    """

    store: ObjectStore
    room: Room
    now: Callable[[], float]
    _journal_put_at: dict[str, float] = field(default_factory=dict)
    _fingerprints: dict[str, object] = field(default_factory=dict)
    _appended: dict[str, AppendedFile] = field(default_factory=dict)

    def push(self, trials: Sequence[int], lazily: bool = False) -> None:
        """See `ControllerSync.push`."""
        for key in in_write_order(self._files(trials)):
            if is_appended(key):
                self._push_appended(key, lazily)
            elif (fingerprint := self._fingerprint(key)) != self._fingerprints.get(key):
                self.store.put(key, self._content(key, fingerprint))
                self._fingerprints[key] = fingerprint

    def note_stored_files(self, listing: Mapping[str, str]) -> None:
        """Note which of the files that it would put the store has already.

        Args:
            listing: tags by key of all objects of the room.
        """
        keys = set(self._files(self.room.trials()))
        stored = {key for key in keys if key in listing and not is_appended(key)}
        once = {key for key in stored if is_written_once(key)}
        self._fingerprints |= dict.fromkeys(once, b"")
        for key, data in self.store.get(stored - once).items():
            fingerprint = self._fingerprint(key)
            if data == self._content(key, fingerprint):
                self._fingerprints[key] = fingerprint

    def _push_appended(self, key: str, lazily: bool) -> None:
        """Put what was appended to a file since the last time; if `lazily`, once in `JOURNAL_SECONDS`."""
        if lazily and self.now() - self._journal_put_at.get(key, -math.inf) < JOURNAL_SECONDS:
            return
        self._appended.setdefault(key, AppendedFile(self.room.root / key, key)).put(self.store)
        self._journal_put_at[key] = self.now()

    def _files(self, trials: Sequence[int]) -> Iterator[str]:
        """Keys of the controller's files that may have changed: those of the room, of workers and of these trials."""
        in_room = (path for path in self.room.root.iterdir() if path.is_file())
        for path in (*in_room, *self._worker_files(set(trials)), *self._trial_files(trials)):
            key = path.relative_to(self.room.root).as_posix()
            if owner(key) is Owner.CONTROLLER:
                yield key

    def _worker_files(self, trials: set[int]) -> Iterator[Path]:
        """Files about all workers, with the inbox entries of these trials."""
        for worker in self.room.workers():
            files = self.room.worker(worker)
            yield from _existing(files.job, files.drain)
            yield from (files.inbox / f"{t:05d}-{a}" for t, a in files.assignments() if t in trials)

    def _trial_files(self, trials: Sequence[int]) -> Iterator[Path]:
        for trial in trials:
            yield from _existing(*(self.room.trial(trial) / name for name in CONTROLLER_TRIAL_FILES))
            for number in self.room.attempts(trial):
                attempt = self.room.attempt(trial, number)
                yield from _existing(attempt.spec, attempt.stop, attempt.fence)

    def _fingerprint(self, key: str) -> object:
        """A value that changes with the object; the object's content itself if it is an inbox entry or written once."""
        if is_inbox_entry(key):
            trial, _, number = key.rpartition("/")[2].partition("-")
            return inbox_entry(self.room.attempt(int(trial), int(number)))
        if is_written_once(key):
            return self._fingerprints[key] if key in self._fingerprints else (self.room.root / key).read_bytes()
        stat = (self.room.root / key).stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _content(self, key: str, fingerprint: object) -> bytes:
        return fingerprint if isinstance(fingerprint, bytes) else (self.room.root / key).read_bytes()


def _existing(*paths: Path) -> Iterator[Path]:
    return (path for path in paths if path.exists())
