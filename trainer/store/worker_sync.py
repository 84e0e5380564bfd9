"""Syncs a worker's room with a controller that shares an object store with it, and no file system.

    with synced_room(url, directory, name) as room:
        Worker(room, name).run()

Three threads copy. One uploads the beat. One exchanges what is small and urgent: it downloads assignments and stops,
and uploads reports. One uploads what is large: steps, checkpoints and adapters. The worker never waits for them. While
the store is unreachable, the worker keeps training, and its files are uploaded later.

Invariants: one process serves a worker's name, ever. A second process that takes the name finds a `claim` in its
directory, and copies nothing. If the prefix in the store was deleted, or is another sweep's by now, the worker learns
of it as in a room on a disk (`trainer.presence`), and nothing more is put. An assignment appears in the local room only
after its specification and the checkpoint from which it resumes. When the block ends, all outcomes have been uploaded,
or it raises.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.contract import Outcome, OutcomeKind, StopCause, encode
from trainer.presence import RoomLostError, token_of, write_token
from trainer.room import AttemptDir, Room, WorkerDir, write_atomic
from trainer.store.attempt_sync import AttemptSync, key_of
from trainer.store.layout import AppendedFile, Owner, is_room_file, owner
from trainer.store.objects import ObjectStore, StoreError, open_store, retry

_log = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 15.0
# How many earlier attempts' checkpoints are downloaded: the second one serves if the first is unreadable.
CHECKPOINTS = 2
SWEEP = "sweep.json"
# The token that the local copy gets if the room in the store is no longer the worker's.
LOST = "another sweep's"
_INBOX_ENTRY = re.compile(r"(?:.*/)?inbox/([0-9]+)-([0-9]+)")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a worker copies, in seconds.

    Args:
        look: between two looks at its own files.
        poll: between two requests for assignments and stops, one listing each.
        beat: between two uploads of its beat; well below the silence after which the controller takes it for lost.
        report: between two uploads of one attempt's reports, at least.
        bulk: between two uploads of a running attempt's steps, and of its checkpoint.
        last: how long to go on trying at the end.
    """

    look: float = 0.1
    poll: float = 1.0
    beat: float = 10.0
    report: float = 1.0
    bulk: float = 30.0
    last: float = 900.0


class IncompleteUploadError(Exception):
    """The worker ended, and the store does not have all that it wrote."""


@contextmanager
def synced_room(url: str, local: Path, worker: str, pace: Pace | None = None, token: str = "") -> Iterator[Room]:
    """A local copy of the room at this URL for one worker, kept up to date while the block runs.

    If another process has served this name, the copy holds `workers/<worker>/claim` and nothing else.

    Args:
        local: an empty directory that no other worker uses.
        token: of the sweep that the worker was started for; empty: a sweep of an old version.

    Raises:
        RoomLostError: the room was deleted, or is another sweep's.
        StoreRefusedError: the store refuses, or its client is not installed.
        IncompleteUploadError: the store was unreachable at the end.
    """
    sync = WorkerSync(open_store(url), Room(local), worker, pace or Pace(), token)
    if not sync.claim():
        yield sync.room
        return
    write_token(sync.room, token)
    with suppress(StoreError):
        sync.pull()  # a worker that no controller waits for any more finds its drain at once
    sync.start()
    try:
        yield sync.room
    finally:
        sync.stop()


@dataclass
class WorkerSync:
    """Copies between a worker's local room and the store.

    Args:
        worker: its name.
    """

    store: ObjectStore
    room: Room
    worker: str
    pace: Pace = field(default_factory=Pace)
    token: str = ""
    _claim: bytes = b""
    _claim_tag: str = ""
    _lost: bool = False
    _pulled: dict[tuple[int, int], str] = field(default_factory=dict)
    _running: dict[tuple[int, int], AttemptSync] = field(default_factory=dict)
    _ended: list[AttemptSync] = field(default_factory=list)
    _small: dict[str, bytes] = field(default_factory=dict)
    _polled: float = float("-inf")
    _log_file: AppendedFile = field(init=False)
    _logged: float = float("-inf")
    _done: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._log_file = AppendedFile(self.dir.log, f"workers/{self.worker}/log")

    @property
    def dir(self) -> WorkerDir:
        return self.room.worker(self.worker)

    def claim(self) -> bool:
        """Take this name for this process, once and for all.

        Returns:
            False if another process has taken it; its claim is then in the local room.

        Raises:
            StoreError: the store refuses, or was unreachable for `pace.last` seconds.
            RoomLostError: the room was deleted, or is another sweep's.
        """
        won: list[bool] = []
        mine, key = uuid.uuid4().hex.encode(), self._claim_key
        self._claim = mine

        def ask() -> None:
            if self.token and self._is_other_sweep(self.store.get([SWEEP]).get(SWEEP)):
                raise RoomLostError(
                    f"the room of the worker {self.worker} in the store was deleted, or is another sweep's now; this "
                    "process ends and writes nothing"
                )
            won.append(self.store.put_if(key, mine, None) or self.store.get([key]).get(key) == mine)

        if error := retry(ask, self.pace.last):
            raise error
        if not won[-1]:
            write_atomic(self.dir.path / "claim", "")
        return won[-1]

    def start(self) -> None:
        """Start the threads; they retry while the store is unreachable."""
        self.dir.inbox.mkdir(parents=True, exist_ok=True)
        acts = {"beat": (self.put_beat, self.pace.beat), "small": (self.sync_small, self.pace.look)}
        acts["bulk"] = (self.put_bulk, self.pace.look)
        for name, (act, pause) in acts.items():
            thread = threading.Thread(target=self._repeat, args=(act, pause), name=f"sync-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the threads, then upload all that is left.

        Raises:
            IncompleteUploadError: the store was unreachable for `pace.last` seconds.
        """
        self._done.set()
        for thread in self._threads:
            thread.join(self.pace.last)
        try:
            error = retry(self._last_pass, self.pace.last)
        except StoreError as refused:
            error = refused
        if error is not None:
            raise IncompleteUploadError(f"what {self.worker} wrote last is not in the store: {error}")

    # --- what is small -----------------------------------------------------------------------------------------------

    def put_beat(self) -> None:
        """Upload the beat, which changes only while the worker's process lives."""
        if not self._lost:
            self._put_small("beat")

    def sync_small(self) -> None:
        """Upload new reports and the worker's small files; every `pace.poll` seconds, download what is new."""
        now = time.monotonic()
        if now - self._polled >= self.pace.poll:  # first, as it says whether the room is still the worker's
            self._polled = now
            self.pull()
        if self._lost:
            return
        self._put_small("slots")
        if not self._small.get("beat"):
            self._put_small("beat")  # the first beat means ready, and must not wait for the beat's own pace
        for attempt in list(self._running.values()):
            if now - attempt.reported >= self.pace.report:
                attempt.reported = now
                attempt.put_reports(self.store)

    def pull(self) -> None:
        """Download what the controller has written for this worker."""
        listing = self.store.list(f"workers/{self.worker}")
        if self._is_lost(listing):
            return
        drain = f"workers/{self.worker}/drain"
        if drain in listing and not self.dir.drain.exists():
            write_atomic(self.dir.drain, self.store.get([drain]).get(drain, b""), durable=False)
        for key, tag in sorted(listing.items()):
            task = _task(key)
            if task is None or self._pulled.get(task) == tag:
                continue
            if task in self._pulled:
                self._pull_control(self.room.attempt(*task))
            elif not self._pull_assignment(*task):
                continue
            self._pulled[task] = tag

    def _pull_assignment(self, trial: int, number: int) -> bool:
        """Download an assignment with all that it needs; False if its specification is not in the store yet."""
        attempt = self.room.attempt(trial, number)
        listing = self.store.list(f"trials/{trial:05d}")
        small = [key for key in listing if is_room_file(key) and owner(key) is Owner.CONTROLLER]
        contents = self.store.get(small)
        if key_of(self.room, attempt.spec) not in contents:
            return False
        self._pull_checkpoints(listing, contents, trial, number)
        for key, data in contents.items():
            write_atomic(self.room.root / key, data, durable=False)
        self._running[trial, number] = AttemptSync(self.room, attempt)
        self.dir.assign(trial, number)
        return True

    def _pull_checkpoints(self, listing: dict[str, str], contents: dict[str, bytes], trial: int, number: int) -> None:
        wanted = CHECKPOINTS
        for earlier in range(number - 1, 0, -1):
            files = self.room.attempt(trial, earlier)
            source = files.fenced if key_of(self.room, files.fence) in contents else files.checkpoint
            if wanted and key_of(self.room, source) in listing:
                wanted -= 1
                if not source.exists():
                    self.store.fetch(key_of(self.room, source), source)

    def _pull_control(self, attempt: AttemptDir) -> None:
        """Download the stop and the fence of an attempt."""
        paths = {key_of(self.room, path): path for path in (attempt.stop, attempt.fence) if not path.exists()}
        for key, data in self.store.get(paths).items():
            write_atomic(paths[key], data, durable=False)

    @property
    def _claim_key(self) -> str:
        return f"workers/{self.worker}/claim"

    def _is_lost(self, listing: Mapping[str, str]) -> bool:
        """Whether the room in the store is no longer the worker's, from a listing of the worker's directory.

        The worker's claim is there as long as nobody deletes the room. If it is not, `sweep.json` is asked.
        """
        tag = listing.get(self._claim_key, "")
        if self._lost or not self._claim or (tag and tag == self._claim_tag):
            return self._lost
        contents = self.store.get([self._claim_key, SWEEP])
        claimed_by_other = contents.get(self._claim_key, self._claim) != self._claim
        deleted = not contents and bool(self._claim_tag)
        says_sweep = SWEEP in contents or self.token
        if claimed_by_other or deleted or (says_sweep and self._is_other_sweep(contents.get(SWEEP))):
            _log.error("the room of the worker %s in the store was deleted, or is another sweep's now", self.worker)
            self._lost = True
            write_token(self.room, LOST)
        elif tag:
            self._claim_tag = tag
        return self._lost

    def _is_other_sweep(self, raw: bytes | None) -> bool:
        """Whether this content of `sweep.json` is another sweep's; also if there is none."""
        try:
            return raw is None or token_of(json.loads(raw)) != self.token
        except (ValueError, RecursionError):  # it is damaged, and proves nothing
            return False

    def _put_small(self, name: str) -> None:
        with suppress(FileNotFoundError):
            data = (self.dir.path / name).read_bytes()
            if self._small.get(name) != data:
                self.store.put(f"workers/{self.worker}/{name}", data)
                self._small[name] = data

    # --- what is large -----------------------------------------------------------------------------------------------

    def put_bulk(self) -> None:
        """Upload everything of ended attempts, and, every `pace.bulk` seconds, the steps and checkpoints of others."""
        now = time.monotonic()
        if self._lost:
            return
        for task, attempt in list(self._running.items()):
            if attempt.files.outcome.exists():
                if self._is_lost(self.store.list(f"workers/{self.worker}")):
                    return
                attempt.put_ended(self.store)
                self._ended.append(attempt)
                del self._running[task]
            elif now - attempt.bulked >= self.pace.bulk and not attempt.files.fence.exists():
                attempt.bulked = now
                attempt.put_running(self.store)
        if now - self._logged >= self.pace.bulk:
            self._logged = now
            self._log_file.put(self.store)
            for attempt in self._ended:  # W&B's client may write its files longer than the trial trains
                attempt.put_others(self.store)

    # --- threads and the end -----------------------------------------------------------------------------------------

    def _repeat(self, act: Callable[[], None], pause: float) -> None:
        """Act every `pause` seconds until the end; after failures, at growing intervals until one succeeds."""
        delay = pause
        while not self._done.wait(delay):
            try:
                act()
                if delay > pause:
                    _log.info("the store is reachable again")
                delay = pause
            except (StoreError, OSError) as error:
                if delay == pause:
                    _log.warning("the store is unreachable, training continues: %s", error)
                delay = min(max(2 * delay, 0.5), MAX_PAUSE_SECONDS)

    def _last_pass(self) -> None:
        if self._lost:
            return
        self._return_late_assignments()
        if self._lost:
            return
        for attempt in self._running.values():
            attempt.bulked = attempt.reported = float("-inf")
        self._logged, self._polled = float("-inf"), time.monotonic()
        self.put_bulk()
        self.sync_small()
        for name in ("beat", "exit"):
            self._put_small(name)

    def _return_late_assignments(self) -> None:
        """Write an outcome for assignments that came too late to begin, so that none of them counts as lost."""
        self.pull()
        if self._lost:
            return
        late = Outcome(OutcomeKind.STOPPED, "its worker ended before the trial could start", cause=StopCause.PREEMPTED)
        for task in self.dir.assignments():
            attempt = self.room.attempt(*task)
            if not attempt.outcome.exists() and not attempt.reports.exists():
                write_atomic(attempt.outcome, encode(late))


def _task(key: str) -> tuple[int, int] | None:
    """Trial and attempt of the key of an inbox entry; None for any other key."""
    match = _INBOX_ENTRY.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None
