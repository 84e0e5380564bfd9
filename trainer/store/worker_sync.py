"""A worker's copy of a room whose controller shares no file system with it: an object store lies between them.

    with synced_room(url, directory, name) as room:
        Worker(room, name).run()

Three threads copy: one the beat, one what is small and urgent (assignments and stops in, reports out), one what is
large (steps, checkpoints, adapters). Nobody waits for them: where the store cannot be reached, the worker goes on
training, and what it wrote is copied later.

Invariants: a worker's name is served by one process, ever: a second one that takes its place in the same store finds a
`claim` in its directory, and copies nothing. An assignment appears here only once its specification and the checkpoint
that it goes on from are here. A checkpoint is put after the reports that lie before it, an outcome after everything
else of its attempt. When the block ends, all outcomes have been put, or it raises.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.contract import Outcome, OutcomeKind, StopCause, encode
from trainer.room import AttemptDir, Room, WorkerDir, write_atomic
from trainer.store.layout import Growth, Owner, is_appended, owner
from trainer.store.objects import Store, StoreError, open_store, patiently

_log = logging.getLogger(__name__)

MOST_PAUSE_SECONDS = 15.0
# Of how many earlier attempts the checkpoint is brought here; a second one should the first be unreadable.
CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a worker copies; all in seconds.

    Args:
        look: between two looks at its own files.
        poll: between two questions for assignments and stops, one listing each.
        beat: between two puts of its beat; well below the controller's limit of silence.
        report: between two puts of one attempt's reports, at least.
        bulk: between two puts of an attempt's steps, and of its checkpoint, while it runs.
        last: how long to go on trying at the end.
    """

    look: float = 0.1
    poll: float = 1.0
    beat: float = 10.0
    report: float = 1.0
    bulk: float = 30.0
    last: float = 900.0


# What changes with a file of ours: its inode, size and time.
Print = tuple[int, int, int]


class LeftBehindError(Exception):
    """The worker ended, and the store does not have all that it wrote."""


@contextmanager
def synced_room(url: str, local: Path, worker: str, pace: Pace | None = None) -> Iterator[Room]:
    """A copy of the room at this URL for one worker, kept up to date while the block runs.

    Where another process has served this name, `workers/<worker>/claim` exists in the copy, and nothing is copied.

    Args:
        local: an empty directory of this worker's own.

    Raises:
        StoreRefusedError: the store's client is missing, or it refuses. LeftBehindError: it did not answer at the end.
    """
    mirror = WorkerSync(open_store(url), Room(local), worker, pace or Pace())
    if not mirror.claim():
        yield mirror.room
        return
    with suppress(StoreError):
        mirror.pull()  # so that one for which nobody waits any more finds its drain at once
    mirror.start()
    try:
        yield mirror.room
    finally:
        mirror.stop()


@dataclass(slots=True)
class AttemptCopy:
    """What the store has of an attempt of this worker."""

    files: AttemptDir
    key: str
    reports: Growth
    steps: Growth
    reported: float = float("-inf")
    bulked: float = float("-inf")
    checkpoint: Print | None = None
    others: dict[Path, Print] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put_reports(self, store: Store) -> None:
        """Put new reports; in one thread at a time, so that no older put lands on a newer one."""
        with self.lock:
            self.reports.put(store)


@dataclass
class WorkerSync:
    """Copies between a worker's room and the store."""

    store: Store
    room: Room
    worker: str
    pace: Pace = field(default_factory=Pace)
    _seen: dict[tuple[int, int], str] = field(default_factory=dict)
    _running: dict[tuple[int, int], AttemptCopy] = field(default_factory=dict)
    _ended: list[AttemptCopy] = field(default_factory=list)
    _small: dict[str, bytes] = field(default_factory=dict)
    _polled: float = float("-inf")
    _log: Growth = field(init=False)
    _logged: float = float("-inf")
    _done: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._log = Growth(self.dir.log, f"workers/{self.worker}/log")

    @property
    def dir(self) -> WorkerDir:
        return self.room.worker(self.worker)

    def claim(self) -> bool:
        """Take this name for this process, once and for all; False where another had it, whose claim is then here.

        Raises:
            StoreError: the store refuses, or has not answered for `pace.last` seconds.
        """
        won: list[bool] = []
        mine = uuid.uuid4().hex.encode()
        key = f"workers/{self.worker}/claim"

        def ask() -> None:
            won.append(self.store.put_if(key, mine, None) or self.store.get([key]).get(key) == mine)

        if error := patiently(ask, self.pace.last):
            raise error
        if not won[-1]:
            write_atomic(self.dir.path / "claim", "")
        return won[-1]

    def start(self) -> None:
        """Begin to copy; where the store cannot be reached, go on asking."""
        self.dir.inbox.mkdir(parents=True, exist_ok=True)
        acts = {"beat": (self.put_beat, self.pace.beat), "post": (self.post, self.pace.look)}
        acts["freight"] = (self.freight, self.pace.look)
        for name, (act, pause) in acts.items():
            thread = threading.Thread(target=self._repeat, args=(act, pause), name=f"mirror-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Put all that is left, then end.

        Raises:
            LeftBehindError: the store did not answer for `pace.last` seconds.
        """
        self._done.set()
        for thread in self._threads:
            thread.join(self.pace.last)
        try:
            error = patiently(self._last_pass, self.pace.last)
        except StoreError as refused:
            error = refused
        if error is not None:
            raise LeftBehindError(f"what {self.worker} wrote last is not in the store: {error}")

    # --- what is small -----------------------------------------------------------------------------------------------

    def put_beat(self) -> None:
        """Let the controller see that this worker's process lives: the beat changes only while it does."""
        self._put_small("beat")

    def post(self) -> None:
        """One look: reports and the worker's words out; from time to time, assignments and stops in."""
        now = time.monotonic()
        self._put_small("slots")
        if not self._small.get("beat"):
            self._put_small("beat")  # ready: nobody shall wait for the next beat
        for copy in list(self._running.values()):
            if now - copy.reported >= self.pace.report:
                copy.reported = now
                copy.put_reports(self.store)
        if now - self._polled >= self.pace.poll:
            self._polled = now
            self.pull()

    def pull(self) -> None:
        """Bring what the controller has for this worker."""
        listing = self.store.list(f"workers/{self.worker}")
        drain = f"workers/{self.worker}/drain"
        if drain in listing and not self.dir.drain.exists():
            write_atomic(self.dir.drain, self.store.get([drain]).get(drain, b""), durable=False)
        for key, tag in sorted(listing.items()):
            task = _task(key)
            if task is None or self._seen.get(task) == tag:
                continue
            if task in self._seen:
                self._bring_orders(self.room.attempt(*task))
            elif not self._bring(*task):
                continue
            self._seen[task] = tag

    def _bring(self, trial: int, number: int) -> bool:
        """Bring an assignment with all that it needs; False where its specification is not there yet."""
        attempt = self.room.attempt(trial, number)
        prefix = f"trials/{trial:05d}"
        listing = self.store.list(prefix)
        small = [key for key in listing if owner(key) is Owner.CONTROLLER]
        contents = self.store.get(small)
        if _key(self.room, attempt.spec) not in contents:
            return False
        self._bring_checkpoints(listing, contents, trial, number)
        for key, data in contents.items():
            write_atomic(self.room.root / key, data, durable=False)
        self._running[trial, number] = AttemptCopy(
            attempt,
            _key(self.room, attempt.path),
            Growth(attempt.reports, _key(self.room, attempt.reports)),
            Growth(attempt.steps, _key(self.room, attempt.steps)),
        )
        self.dir.assign(trial, number)
        return True

    def _bring_checkpoints(self, listing: dict[str, str], contents: dict[str, bytes], trial: int, number: int) -> None:
        wanted = CHECKPOINTS
        for earlier in range(number - 1, 0, -1):
            files = self.room.attempt(trial, earlier)
            source = files.fenced if _key(self.room, files.fence) in contents else files.checkpoint
            if wanted and _key(self.room, source) in listing:
                wanted -= 1
                if not source.exists():
                    self.store.fetch(_key(self.room, source), source)

    def _bring_orders(self, attempt: AttemptDir) -> None:
        paths = {_key(self.room, path): path for path in (attempt.stop, attempt.fence) if not path.exists()}
        for key, data in self.store.get(paths).items():
            write_atomic(paths[key], data, durable=False)

    def _put_small(self, name: str) -> None:
        with suppress(FileNotFoundError):
            data = (self.dir.path / name).read_bytes()
            if self._small.get(name) != data:
                self.store.put(f"workers/{self.worker}/{name}", data)
                self._small[name] = data

    # --- what is large -----------------------------------------------------------------------------------------------

    def freight(self) -> None:
        """One look: steps and checkpoints of what runs, everything of what has ended, its outcome last."""
        now = time.monotonic()
        for task, copy in list(self._running.items()):
            if copy.files.outcome.exists():
                self._finish(copy)
                self._ended.append(copy)
                del self._running[task]
            elif now - copy.bulked >= self.pace.bulk and not copy.files.fence.exists():
                copy.bulked = now
                self._put_checkpoint(copy)
                copy.steps.put(self.store)
        if now - self._logged >= self.pace.bulk:
            self._logged = now
            self._log.put(self.store)
            for copy in self._ended:  # what is tracked elsewhere may take longer than the trial
                self._put_others(copy)

    def _finish(self, copy: AttemptCopy) -> None:
        outcome = copy.files.outcome.read_bytes()
        if not copy.files.fence.exists():  # nobody would read it
            self._put_checkpoint(copy)
            copy.put_reports(self.store)
            copy.steps.put(self.store)
            self._put_others(copy)
        self.store.put(_key(self.room, copy.files.outcome), outcome)
        if copy.checkpoint is not None and not copy.files.checkpoint.exists():
            self.store.delete(_key(self.room, copy.files.checkpoint))  # nothing goes on from there
        copy.files.checkpoint.unlink(missing_ok=True)  # the store has it, and a worker may train many trials

    def _put_checkpoint(self, copy: AttemptCopy) -> None:
        """Put the checkpoint where it is a newer one than the store's, after the reports that lie before it."""
        with suppress(FileNotFoundError), _snapshot(copy.files.checkpoint) as snapshot:
            made = _print(snapshot)
            if made != copy.checkpoint:
                copy.put_reports(self.store)
                self.store.put(_key(self.room, copy.files.checkpoint), snapshot)
                copy.checkpoint = made

    def _put_others(self, copy: AttemptCopy) -> None:
        """Put what the attempt wrote besides: its adapter, and whatever else lies in its directory."""
        apart = {copy.files.outcome, copy.files.checkpoint}
        for path in sorted(copy.files.path.rglob("*")):
            key = _key(self.room, path)
            if not path.is_file() or path in apart or owner(key) is not Owner.WORKER or is_appended(key):
                continue
            with suppress(FileNotFoundError):
                made = _print(path)
                if copy.others.get(path) != made:
                    self.store.put(key, path)
                    copy.others[path] = made

    # --- threads and the end -----------------------------------------------------------------------------------------

    def _repeat(self, act: Callable[[], None], pause: float) -> None:
        """Act again and again until the end; after a failure more and more seldom, until it succeeds."""
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
                delay = min(max(2 * delay, 0.5), MOST_PAUSE_SECONDS)

    def _last_pass(self) -> None:
        self._give_back()
        for copy in self._running.values():
            copy.bulked = copy.reported = float("-inf")
        self._logged, self._polled = float("-inf"), time.monotonic()
        self.freight()
        self.post()
        for name in ("beat", "exit"):
            self._put_small(name)

    def _give_back(self) -> None:
        """End the assignments that came too late for this worker to begin them: they are no lost attempts."""
        self.pull()
        late = Outcome(OutcomeKind.STOPPED, "its worker ended before it came", cause=StopCause.PREEMPTED)
        for task in self.dir.assignments():
            attempt = self.room.attempt(*task)
            if not attempt.outcome.exists() and not attempt.reports.exists():
                write_atomic(attempt.outcome, encode(late))


@contextmanager
def _snapshot(path: Path) -> Iterator[Path]:
    """Another name for the file as it is now: its writer may replace it meanwhile."""
    name = path.with_name(f".{path.name}.put")
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except FileNotFoundError:
        raise
    except OSError:  # no links here; an upload keeps the file that it has opened
        name = path
    try:
        yield name
    finally:
        if name != path:
            name.unlink(missing_ok=True)


def _print(path: Path) -> Print:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _task(key: str) -> tuple[int, int] | None:
    """Trial and attempt of an inbox entry's key."""
    folder, _, name = key.rpartition("/")
    trial, _, number = name.partition("-")
    if not folder.endswith("/inbox") or not trial.isdigit() or not number.isdigit():
        return None
    return int(trial), int(number)


def _key(room: Room, path: Path) -> str:
    return path.relative_to(room.root).as_posix()
