"""The controller's copy of a room that its workers reach only through an object store.

Invariants:

- Files are put in an order in which each makes sense with those before it: the study before a specification, a fence
  before the next attempt, a specification before its inbox entry.
- Everything that the controller has written is put before anything is read, so the controller never acts on a fact
  that follows from a file that no worker can see.
- An outcome appears in the copy only together with all reports that precede it.
- Checkpoints, adapters and steps stay in the store; `download` fetches them for a person.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sweep.errors import ConfigError
from sweep.store.download import is_other_sweep
from sweep.store.keys import SWEEP, file_contents, in_write_order, is_inbox_entry, is_written_once
from sweep.store.request_budget import common_prefixes, pages
from trainer.clock import boot_seconds
from trainer.room import Room, write_atomic
from trainer.store.layout import (
    CHUNK,
    CONTROL,
    CONTROLLER_TRIAL_FILES,
    AppendedFile,
    Owner,
    base_key,
    inbox_entry,
    is_appended,
    join,
    owner,
    with_chunks,
)
from trainer.store.objects import ObjectStore

# The longest time for which a lazy push may hold back the study's journal.
JOURNAL_SECONDS = 60.0
# Files of a worker whose content the controller reads. A beat is not read: its tag says that it changed.
WORKER_FILES = {"slots", "exit"}
# In each pull the reports of at least this many trials are read, even if the request budget is used up.
MIN_TRIALS_READ = 3


@dataclass(frozen=True, slots=True)
class _Changes:
    """What workers have put since it was last read, as keys of objects.

    Args:
        outcomes: of attempts that have ended.
        reports: files of reports, by the key of their first chunk.
        others: the rest of what the controller reads.
    """

    outcomes: list[str]
    reports: set[str]
    others: list[str]


@dataclass
class ControllerSync:
    """Copies files between the controller's room and the store.

    Args:
        room: on this machine; only this process writes there.
        beat_epoch: a part of every beat. Raising it makes all beats look new.
        now: the local clock in seconds, time of suspension included.
        _journal_put_at: by key of an appended file, when it was last put.
        _fingerprints: by key, the fingerprint of the file that the store has.
        _tags: by key, the tag of the object that was last read.
        _room_size: how many objects the last listing of the whole room had.
        _unread: files of reports that have changed but were not read yet, the ones to read first in front.
    """

    store: ObjectStore
    room: Room
    beat_epoch: int = 0
    now: Callable[[], float] = boot_seconds
    _journal_put_at: dict[str, float] = field(default_factory=dict)
    _fingerprints: dict[str, object] = field(default_factory=dict)
    _appended: dict[str, AppendedFile] = field(default_factory=dict)
    _tags: dict[str, str] = field(default_factory=dict)
    _room_size: int = 0
    _unread: list[str] = field(default_factory=list)

    def start(self, continued: bool) -> None:
        """Make room and store agree before the controller observes for the first time.

        Args:
            continued: no other controller has acted since the last one on this machine. Then local files that were
                not put yet count; otherwise the store's do, and local files that differ are replaced.

        Raises:
            ConfigError: the store holds another sweep, or there is no sweep at all.
            StoreError: the store does not answer.
        """
        listing = self.store.list()
        if not continued and SWEEP in listing:
            self._check_same_sweep()
            self._replace_local_files(listing)
        elif SWEEP not in listing and not self.room.sweep.exists():
            raise ConfigError("there is no sweep, neither in the local room nor in the store")
        if not (self.room.root / CONTROL).exists():
            self.clear_control()
        self._note_stored_files(listing)
        self.push(self.room.trials())

    def push(self, trials: Sequence[int], lazily: bool = False) -> None:
        """Put what the controller has written: for the sweep, for all workers and for these trials.

        Args:
            lazily: put the study's journal once a minute only. A controller that continues without its last lines
                finds the same in reports and outcomes, as long as the journal is put before a specification.

        Raises:
            StoreError: the store does not answer; the next call continues.
        """
        for key in in_write_order(self._controller_files(trials)):
            if is_appended(key):
                if not lazily or self.now() - self._journal_put_at.get(key, -math.inf) >= JOURNAL_SECONDS:
                    self._appended.setdefault(key, AppendedFile(self.room.root / key, key)).put(self.store)
                    self._journal_put_at[key] = self.now()
            elif (fingerprint := self._fingerprint(key)) != self._fingerprints.get(key):
                self.store.put(key, self._content(key, fingerprint))
                self._fingerprints[key] = fingerprint

    def pull(
        self, trials: Sequence[int], workers: Sequence[str] = (), most: Callable[[], float] = lambda: math.inf
    ) -> None:
        """Read what these workers have put, for themselves and for these trials, and write it into the room.

        Args:
            most: called after the listing; returns how many trials' reports may be read. The others are first in turn
                in the next call. Reports that come with an outcome are always read.

        Raises:
            StoreError: the store does not answer.
        """
        listing = self._list(trials, workers)
        self._write_beats(listing)
        changes = self._changes(listing, trials)
        ended = {_reports_key(outcome) for outcome in changes.outcomes}
        in_turn = self._in_turn(changes.reports - ended)
        chosen = in_turn[: int(min(max(most(), MIN_TRIALS_READ), len(in_turn)))]
        keys = [*with_chunks({*chosen, *ended}, listing), *changes.others, *changes.outcomes]
        contents = self.store.get(keys)
        contents |= self._later_chunks(ended, contents)
        self._write(contents, changes.outcomes)
        self._tags |= {key: listing[key] for key in contents if key in listing}
        self._unread = in_turn[len(chosen) :]

    def before_fence(self, trial: int, number: int) -> None:
        """Copy an attempt's checkpoint for the next attempt; call this before the attempt is fenced off.

        The checkpoint is copied before the reports are read for the last time, so every milestone in it has a report
        that counts. Whatever the worker puts afterwards, neither its checkpoint nor its later reports are read.

        Raises:
            StoreError: the store does not answer; the call may be repeated as long as no fence was put.
        """
        files = self.room.attempt(trial, number)
        checkpoint, fenced = (path.relative_to(self.room.root).as_posix() for path in (files.checkpoint, files.fenced))
        self.store.copy(checkpoint, fenced)
        self.pull([trial])

    def clear_control(self) -> None:
        """Delete the mode that a user requested of an earlier controller.

        Raises:
            StoreError: the store does not answer.
        """
        self.store.delete(CONTROL)
        self._tags.pop(CONTROL, None)
        (self.room.root / CONTROL).unlink(missing_ok=True)

    @property
    def unread(self) -> int:
        """For how many trials the last pull left new reports unread."""
        return len(self._unread)

    # --- push ---------------------------------------------------------------------------------------------------------

    def _controller_files(self, trials: Sequence[int]) -> Iterator[str]:
        """Keys of the controller's files that may have changed."""
        pushed = set(trials)
        paths = [path for path in self.room.root.iterdir() if path.is_file()]
        for worker in self.room.workers():
            files = self.room.worker(worker)
            paths += [path for path in (files.job, files.drain) if path.exists()]
            paths += [files.inbox / f"{t:05d}-{a}" for t, a in files.assignments() if t in pushed]
        for trial in trials:
            paths += [path for name in CONTROLLER_TRIAL_FILES if (path := self.room.trial(trial) / name).exists()]
            for number in self.room.attempts(trial):
                attempt = self.room.attempt(trial, number)
                paths += [path for path in (attempt.spec, attempt.stop, attempt.fence) if path.exists()]
        for path in paths:
            key = path.relative_to(self.room.root).as_posix()
            if owner(key) is Owner.CONTROLLER:
                yield key

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

    # --- pull ---------------------------------------------------------------------------------------------------------

    def _list(self, trials: Sequence[int], workers: Sequence[str]) -> dict[str, str]:
        """Tags by key of all objects that may matter: a listing of the whole room, or of parts of it if that takes
        fewer requests."""
        prefixes = {
            "trials": common_prefixes([f"{trial:05d}" for trial in trials]),
            "workers": common_prefixes(workers),
        }
        if pages(self._room_size) <= sum(map(len, prefixes.values())) + 1:
            listing = self.store.list()
            self._room_size = len(listing)
            return listing
        listing = {}
        for directory, beginnings in prefixes.items():
            for begins in beginnings:
                listing |= self.store.list(directory, begins)
        if control := self.store.get([CONTROL]).get(CONTROL):
            listing[CONTROL] = control.decode(errors="replace")
        return listing

    def _changes(self, listing: Mapping[str, str], trials: Sequence[int]) -> _Changes:
        """Which objects of these trials, of workers and of the user have changed since they were read."""
        directories = {f"{trial:05d}" for trial in trials}
        changes = _Changes([], set(), [])
        for key in (key for key, tag in listing.items() if self._tags.get(key) != tag):
            parts = key.split("/")
            if parts[0] == "trials" and len(parts) == 4 and parts[1] in directories:
                if parts[3] == "outcome.json":
                    changes.outcomes.append(key)
                elif base_key(parts[3]) == "reports.jsonl":
                    changes.reports.add(base_key(key))
            elif key == CONTROL or (parts[0] == "workers" and len(parts) == 3 and parts[2] in WORKER_FILES):
                changes.others.append(key)
        return changes

    def _in_turn(self, reports: Collection[str]) -> list[str]:
        """Files of reports in the order in which to read them: first those that the last pull left unread."""
        earlier = [key for key in self._unread if key in reports]
        return [*earlier, *sorted(set(reports) - set(earlier))]

    def _later_chunks(self, ended: Collection[str], contents: Mapping[str, bytes]) -> dict[str, bytes]:
        """Chunks of these ended attempts' reports that were put after their part of the listing had been made.

        They come after a full chunk, so each file is read on until a chunk is not full or does not exist.
        """
        later: dict[str, bytes] = {}
        for base in ended:
            number, chunk = 0, contents.get(base)
            while chunk is None or len(chunk) == CHUNK:
                key = f"{base}@{number}" if number else base
                chunk = contents.get(key) or self.store.get([key]).get(key)
                if chunk is None:
                    break
                later[key] = chunk
                number += 1
        return later

    def _write(self, contents: Mapping[str, bytes], outcomes: Collection[str]) -> None:
        """Write these objects into the room, outcomes last."""
        files = join({key: data for key, data in contents.items() if key not in outcomes})
        files |= {key: contents[key] for key in outcomes if key in contents}
        for path, data in files.items():
            write_atomic(self.room.root / path, data, durable=False)

    def _write_beats(self, listing: Mapping[str, str]) -> None:
        """Write each worker's beat: the tag of its object, which changes with the worker's own beat."""
        for key, tag in listing.items():
            parts = key.split("/")
            beat = f"{tag} {self.beat_epoch}"
            if parts[0] == "workers" and parts[2:] == ["beat"] and self._tags.get(key) != beat:
                write_atomic(self.room.root / key, beat, durable=False)
                self._tags[key] = beat

    # --- start --------------------------------------------------------------------------------------------------------

    def _check_same_sweep(self) -> None:
        stored = json.loads(self.store.get([SWEEP])[SWEEP])
        if is_other_sweep(self.room, stored):
            raise ConfigError(
                f"the store holds a sweep {stored.get('name')} already, which is not the one in {self.room.root}; "
                "give this one another URL, or continue that one with `sweep resume`"
            )

    def _note_stored_files(self, listing: Mapping[str, str]) -> None:
        """Note which files the store has already, so that they are not put again."""
        stored = [k for k in set(self._controller_files(self.room.trials())) if k in listing and not is_appended(k)]
        once = {key for key in stored if is_written_once(key)}
        self._fingerprints |= dict.fromkeys(once, b"")
        for key, data in self.store.get(set(stored) - once).items():
            fingerprint = self._fingerprint(key)
            if data == self._content(key, fingerprint):
                self._fingerprints[key] = fingerprint

    def _replace_local_files(self, listing: Mapping[str, str]) -> None:
        """Make the controller's files in the local room those of the store."""
        files = join(self.store.get([key for key in listing if owner(key) is Owner.CONTROLLER]))
        for path in sorted(self.room.root.rglob("*")):
            key = path.relative_to(self.room.root).as_posix()
            if "/" in key and path.is_file() and owner(key) is Owner.CONTROLLER and key not in files:
                path.unlink()
        for key, data in file_contents(files).items():
            write_atomic(self.room.root / key, data)


def _reports_key(outcome: str) -> str:
    """The key of the reports that precede an outcome."""
    return f"{outcome.rpartition('/')[0]}/reports.jsonl"
