"""Reads what workers have put into the object store of a room, and writes it into the controller's copy.

Invariants: an outcome appears in the copy only together with all reports that precede it. Checkpoints, adapters and
steps stay in the store; `download` fetches them for a person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sweep.store.request_budget import common_prefixes, pages
from trainer.room import Room, write_atomic
from trainer.store.layout import CHUNK, CONTROL, base_key, is_room_file, join, with_chunks
from trainer.store.objects import ObjectStore

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


@dataclass(slots=True)
class RoomPull:
    """The workers' files of a room, on their way from the store.

    Args:
        beat_epoch: a part of every beat. Raising it makes all beats look new.
        _tags: by key, the tag of the object that was last read.
        _room_size: how many objects the last listing of the whole room had.
        _unread: files of reports that have changed but were not read yet, the ones to read first in front.
    """

    store: ObjectStore
    room: Room
    beat_epoch: int = 0
    _tags: dict[str, str] = field(default_factory=dict)
    _room_size: int = 0
    _unread: list[str] = field(default_factory=list)

    @property
    def unread(self) -> int:
        """For how many trials the last pull left new reports unread."""
        return len(self._unread)

    def pull(
        self, trials: Sequence[int], workers: Sequence[str] = (), most: Callable[[], float] = lambda: math.inf
    ) -> None:
        """See `ControllerSync.pull`."""
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

    def forget(self, key: str) -> None:
        """Read this object again even if its tag is the last one."""
        self._tags.pop(key, None)

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
        for key in (key for key, tag in listing.items() if self._tags.get(key) != tag and is_room_file(key)):
            match key.split("/"):
                case ["trials", trial, _, "outcome.json"] if trial in directories:
                    changes.outcomes.append(key)
                case ["trials", trial, _, name] if trial in directories and base_key(name) == "reports.jsonl":
                    changes.reports.add(base_key(key))
                case ["workers", _, name] if name in WORKER_FILES:
                    changes.others.append(key)
                case [name] if name == CONTROL:
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
            write_atomic(self.room.root / path, data, durable=False, root=self.room.root)

    def _write_beats(self, listing: Mapping[str, str]) -> None:
        """Write each worker's beat: the tag of its object, which changes with the worker's own beat."""
        for key, tag in listing.items():
            parts = key.split("/")
            beat = f"{tag} {self.beat_epoch}"
            if parts[0] == "workers" and parts[2:] == ["beat"] and self._tags.get(key) != beat and is_room_file(key):
                write_atomic(self.room.root / key, beat, durable=False, root=self.room.root)
                self._tags[key] = beat


def _reports_key(outcome: str) -> str:
    """The key of the reports that precede an outcome."""
    return f"{outcome.rpartition('/')[0]}/reports.jsonl"
