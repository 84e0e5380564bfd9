"""The controller's copy of a room that its workers reach through an object store only.

Invariants: the controller's files are put in an order in which each makes sense with those before it: the study before
a specification, a fence before the attempt that follows it, a specification before its inbox entry. What the store
does not have yet is put before anything is read, so that no fact is seen here that a worker cannot see. Of what workers
write, an outcome appears here only with all reports that lie before it. Checkpoints, adapters and steps stay in the
store; `pull_room` brings them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweep.errors import ConfigError
from sweep.store.request_budget import cover, pages
from trainer.room import Room, read_json, write_atomic
from trainer.store.layout import (
    CHUNK,
    CONTROL,
    CONTROLLER_TRIAL_FILES,
    LEASE,
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

TAGS = ".tags"
SWEEP = "sweep.json"
# Between two puts of a study that only takes reports in.
STUDY_SECONDS = 60.0
# Of a worker's files, those that the controller reads; a beat is not fetched, as its tag says that it changed.
WORKERS_WORDS = {"slots", "exit"}
# However much was asked for lately, so many trials' reports are read in one look.
LEAST_READS = 3
# What a person's view of a sweep does without.
LARGE = {"checkpoint.pt", "fenced.pt", "steps.jsonl", "log"}


@dataclass
class ControllerSync:
    """Copies between the controller's room and the store.

    Args:
        room: on this machine; nobody else writes there.
        epoch: a number that all beats change with.
    """

    store: ObjectStore
    room: Room
    epoch: int = 0
    now: Callable[[], float] = time.monotonic
    _put_last: dict[str, float] = field(default_factory=dict)
    _sent: dict[str, object] = field(default_factory=dict)
    _grown: dict[str, AppendedFile] = field(default_factory=dict)
    _tags: dict[str, str] = field(default_factory=dict)
    _keys: int = 0
    _waiting: list[str] = field(default_factory=list)

    def start(self, continued: bool) -> None:
        """Bring both sides to one state, before the controller looks.

        Args:
            continued: no other controller has acted since this machine's last one. Then what it had written here and
                not put yet counts; else the store's word does, and what differs here goes.

        Raises:
            ConfigError: the store holds another sweep. StoreError: it does not answer.
        """
        listing = self.store.list()
        if not continued and SWEEP in listing:
            self._check_same()
            self._take_over(listing)
        elif SWEEP not in listing and not self.room.sweep.exists():
            raise ConfigError("there is no sweep, neither here nor in the store")
        if not (self.room.root / CONTROL).exists():
            self.clear_control()
        self._learn(listing)
        self.push(self.room.trials())

    def push(self, trials: Sequence[int], lazily: bool = False) -> None:
        """Put what the controller has written: of the sweep and its workers, and of these trials.

        Args:
            lazily: the study only from time to time. Whoever goes on without its last lines finds the same in the
                reports and outcomes, as long as it is put before a specification.

        Raises:
            StoreError: the store does not answer; the next call goes on.
        """
        for _, key in sorted((_rank(key), key) for key in self._own(trials)):
            if is_appended(key):
                if not lazily or self.now() - self._put_last.get(key, float("-inf")) >= STUDY_SECONDS:
                    self._grown.setdefault(key, AppendedFile(self.room.root / key, key)).put(self.store)
                    self._put_last[key] = self.now()
            elif (print_ := self._print(key)) != self._sent.get(key):
                self.store.put(key, print_ if isinstance(print_, bytes) else (self.room.root / key).read_bytes())
                self._sent[key] = print_

    def pull(
        self, trials: Sequence[int], workers: Sequence[str] = (), most: Callable[[], float] = lambda: math.inf
    ) -> None:
        """Bring what these workers have written, of these trials and of themselves.

        Args:
            most: asked once they are listed, how many trials' reports to read; the others, whose turn comes first the
                next time, may have reported again by then. What comes with an outcome is read in any case.

        Raises:
            StoreError: the store does not answer.
        """
        listing = self._list(trials, workers)
        known = {f"{trial:05d}" for trial in trials}
        outcomes, small, reports = [], [], set()
        for key, tag in listing.items():
            parts = key.split("/")
            if parts[0] == "workers" and parts[2:] == ["beat"]:
                self._beat(key, f"{tag} {self.epoch}")
            elif self._tags.get(key) == tag:
                continue
            elif parts[0] == "trials" and len(parts) == 4 and parts[1] in known:
                if parts[3] == "outcome.json":
                    outcomes.append(key)
                elif base_key(parts[3]) == "reports.jsonl":
                    reports.add(base_key(key))
            elif key == CONTROL or (parts[0] == "workers" and len(parts) == 3 and parts[2] in WORKERS_WORDS):
                small.append(key)
        behind = {_reports_of(outcome) for outcome in outcomes}
        waiting = [*(key for key in self._waiting if key in reports), *sorted(reports - set(self._waiting))]
        waiting = [key for key in waiting if key not in behind]
        chosen = waiting[: int(min(max(most(), LEAST_READS), len(waiting)))]
        contents = self.store.get([*with_chunks({*chosen, *behind}, listing), *small, *outcomes])
        contents |= self._passed(behind, contents)
        ended = {key: contents.pop(key) for key in outcomes if key in contents}
        for path, data in [*join(contents).items(), *ended.items()]:
            write_atomic(self.room.root / path, data, durable=False)
        self._tags |= {key: listing[key] for key in (*contents, *ended) if key in listing}
        self._waiting = waiting[len(chosen) :]

    def before_fence(self, trial: int, number: int) -> None:
        """Copy an attempt's checkpoint, for a later one to go on from; to be called before its fence is raised.

        The copy comes before a last look at the reports, so that every milestone in it has a report that counts. The
        worker may go on to put what it likes: neither its checkpoint nor what lies behind the fence is read again.

        Raises:
            StoreError: the store does not answer; the call may be repeated as long as no fence was put.
        """
        files = self.room.attempt(trial, number)
        checkpoint, fenced = (path.relative_to(self.room.root).as_posix() for path in (files.checkpoint, files.fenced))
        self.store.copy(checkpoint, fenced)
        self.pull([trial])

    def clear_control(self) -> None:
        """Take away what a person wanted of an earlier controller."""
        self.store.delete(CONTROL)
        self._tags.pop(CONTROL, None)
        (self.room.root / CONTROL).unlink(missing_ok=True)

    @property
    def behind(self) -> int:
        """Of how many trials the last look left new reports unread."""
        return len(self._waiting)

    # --- what is put -------------------------------------------------------------------------------------------------

    def _own(self, trials: Sequence[int]) -> Iterator[str]:
        """Keys of the controller's files that may have changed."""
        wanted = set(trials)
        paths = [path for path in self.room.root.iterdir() if path.is_file()]
        for worker in self.room.workers():
            files = self.room.worker(worker)
            paths += [path for path in (files.job, files.drain) if path.exists()]
            paths += [files.inbox / f"{t:05d}-{a}" for t, a in files.assignments() if t in wanted]
        for trial in trials:
            paths += [path for name in CONTROLLER_TRIAL_FILES if (path := self.room.trial(trial) / name).exists()]
            for number in self.room.attempts(trial):
                attempt = self.room.attempt(trial, number)
                paths += [path for path in (attempt.spec, attempt.stop, attempt.fence) if path.exists()]
        for path in paths:
            key = path.relative_to(self.room.root).as_posix()
            if owner(key) is Owner.CONTROLLER:
                yield key

    def _print(self, key: str) -> object:
        """What changes with a file's content: nothing for one that is written once, an inbox entry's text."""
        if "/inbox/" in key:
            trial, _, number = key.rpartition("/")[2].partition("-")
            return inbox_entry(self.room.attempt(int(trial), int(number)))
        if _is_written_once(key):
            return self._sent[key] if key in self._sent else (self.room.root / key).read_bytes()
        stat = (self.room.root / key).stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    # --- what is brought ---------------------------------------------------------------------------------------------

    def _list(self, trials: Sequence[int], workers: Sequence[str]) -> dict[str, str]:
        """All keys of interest, by the way that takes fewer requests: the whole room, or parts of it."""
        names = {"trials": cover([f"{trial:05d}" for trial in trials]), "workers": cover(workers)}
        if pages(self._keys) <= sum(map(len, names.values())) + 1:
            listing = self.store.list()
            self._keys = len(listing)
            return listing
        listing = {}
        for prefix, beginnings in names.items():
            for begins in beginnings:
                listing |= self.store.list(prefix, begins)
        if control := self.store.get([CONTROL]).get(CONTROL):
            listing[CONTROL] = control.decode(errors="replace")
        return listing

    def _passed(self, behind: Collection[str], contents: Mapping[str, bytes]) -> dict[str, bytes]:
        """What the listing may have passed before it was put: the chunks after these reports' last full one."""
        found: dict[str, bytes] = {}
        for base in behind:
            number, last = 0, contents.get(base)
            while last is None or len(last) == CHUNK:
                key = f"{base}@{number}" if number else base
                last = contents.get(key) or self.store.get([key]).get(key)
                if last is None:
                    break
                found[key] = last
                number += 1
        return found

    def _beat(self, key: str, text: str) -> None:
        if self._tags.get(key) != text:
            write_atomic(self.room.root / key, text, durable=False)
            self._tags[key] = text

    # --- a new controller --------------------------------------------------------------------------------------------

    def _check_same(self) -> None:
        if _differs(self.room, there := json.loads(self.store.get([SWEEP])[SWEEP])):
            raise ConfigError(
                f"the store holds a sweep {there.get('name')} already, which is not the one in {self.room.root}; "
                "give this one another place, or go on with that one by `sweep resume`"
            )

    def _learn(self, listing: dict[str, str]) -> None:
        """Take note of what the store has already, so that it is not put again."""
        here = set(self._own(self.room.trials()))
        there = [key for key in here if key in listing and not is_appended(key)]
        once = {key for key in there if _is_written_once(key)}
        self._sent |= dict.fromkeys(once, b"")
        for key, data in self.store.get(set(there) - once).items():
            print_ = self._print(key)
            if data == (print_ if isinstance(print_, bytes) else (self.room.root / key).read_bytes()):
                self._sent[key] = print_

    def _take_over(self, listing: dict[str, str]) -> None:
        """Let the controller's files here be those of the store."""
        files = join(self.store.get([key for key in listing if owner(key) is Owner.CONTROLLER]))
        for path in sorted(self.room.root.rglob("*")):
            key = path.relative_to(self.room.root).as_posix()
            if "/" in key and path.is_file() and owner(key) is Owner.CONTROLLER and key not in files:
                path.unlink()
        for key, data in sorted(files.items(), key=lambda item: (_rank(item[0]), item[0])):
            write_atomic(self.room.root / key, b"" if "/inbox/" in key else data)


def pull_room(store: ObjectStore, room: Room, light: bool = False) -> int:
    """Bring a whole room, or what has changed of it since the last call; how many objects were read.

    Args:
        light: without checkpoints, steps, logs and adapters: what `status` and `best` read.

    Raises:
        ConfigError: there is no sweep, or the room here is another one's. StoreError: the store does not answer.
    """
    listing = store.list()
    old = read_json(room.root / TAGS) or {}
    if SWEEP not in listing or old.get(SWEEP) != listing[SWEEP]:
        check_same(store, room)
    wanted = {key: tag for key, tag in listing.items() if key != LEASE and not (light and _is_large(key))}
    changed = {base_key(key) for key, tag in wanted.items() if old.get(key) != tag}
    small = [key for key in with_chunks(changed, wanted) if not _is_large(key) or is_appended(base_key(key))]
    large = [key for key in changed if _is_large(key) and not is_appended(key)]
    contents = store.get([key for key in small if key.endswith("/outcome.json")])  # before the reports behind them
    contents |= store.get([key for key in small if key not in contents])
    for key, data in sorted(join(contents).items(), key=lambda item: (_rank(item[0]), item[0])):
        write_atomic(room.root / key, b"" if "/inbox/" in key else data, durable=False)
    for key in large:
        store.fetch(key, room.root / key)
    fresh = {key: tag for key, tag in wanted.items() if base_key(key) in changed}
    write_atomic(room.root / TAGS, json.dumps({**old, **fresh}), durable=False)
    return len(small) + len(large)


def check_same(store: ObjectStore, room: Room) -> None:
    """Refuse a store without a sweep, and a room here that is another sweep's.

    Raises:
        ConfigError: saying which. StoreError: the store does not answer.
    """
    raw = store.get([SWEEP]).get(SWEEP)
    if raw is None:
        raise ConfigError("there is no sweep at this place of the store")
    if _differs(room, there := json.loads(raw)):
        raise ConfigError(
            f"the store holds another sweep {there.get('name')} than the one in {room.root}, which it would replace; "
            "set SWEEP_ROOMS to another directory to look at it"
        )


def _differs(room: Room, there: Mapping[str, Any]) -> bool:
    """Whether the room here, if there is one, is another sweep's than this `sweep.json`."""
    here = read_json(room.sweep)
    return here is not None and (here.get("name"), here.get("created")) != (there.get("name"), there.get("created"))


def _reports_of(outcome: str) -> str:
    """The key of the reports behind an outcome."""
    return f"{outcome.rpartition('/')[0]}/reports.jsonl"


def _is_large(key: str) -> bool:
    return base_key(key).rpartition("/")[2] in LARGE or "/adapter/" in key


def _is_written_once(key: str) -> bool:
    return key.startswith("trials/") or key.endswith("/drain")


def _rank(key: str) -> int:
    """The place of a file among those that are put together: what refers to another comes after it."""
    name = key.rpartition("/")[2]
    order = (SWEEP, "job.json", "fence", "spec.json", "stop", "drain", "outcome.json")
    if "/inbox/" in key:
        return len(order) + 1
    return order.index(name) + 1 if name in order else 0
