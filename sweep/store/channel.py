"""A `Channel` for workers that reach the controller through an object store, and the way to hold such a room.

    with hold(controller_lock(room), …) as mine, mirrored(room, url, whereabouts()) as channel:
        Controller(Ports(study, channel, …), …).run()

Invariants: every act is in the store when its call returns; where the store cannot be reached it raises `RetryLater`,
and is safe to repeat. Nothing is observed that is older than `latest` seconds, or than the end of the last job that
ended: whoever takes an attempt for lost has seen all that it wrote. While the store does not answer nothing is
observed. No act is begun without the lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sweep.controller.ports import Clock, ObservedAttempt, ObservedWorker
from sweep.controller.room_channel import WAIT_SECONDS, RoomChannel
from sweep.errors import ConfigError, RetryLater
from sweep.model import Mode
from sweep.store.controller_sync import ControllerSync, check_same, pull_room
from sweep.store.lease import Lease, await_release, holder_of
from sweep.store.request_budget import MeteredStore, RequestBudget
from trainer.contract import StopCause, TrialSpec
from trainer.room import Room, read_text
from trainer.store.layout import CONTROL, PrefixStore
from trainer.store.objects import ObjectStore, StoreError, StoreRefusedError, open_store, retry

# Between two looks at the store: as often as this where little happens, and not more seldom than that.
LOOK_SECONDS = 2.0
LATEST_SECONDS = 15.0
REQUESTS_PER_MINUTE = 60
# After failures for this long, no beat was seen that a worker may well have made: its silence begins anew.
OUTAGE_SECONDS = 5.0
# At the beginning and at the end of a controller's run, before a person is told.
PATIENCE_SECONDS = 60.0
LEASE_RECORD = ".lease"


@dataclass
class StoreChannel:
    """A `Channel` (see `ports`) over a store.

    Args:
        check: raises where this controller may not act, as another holds the room.
        look, latest: seconds between two looks at the store, at least and at most.
        ended: what changes whenever a job ends; where that is not known, something new, so that each observation looks.
        continued: no other controller has acted since this machine's last one.
        beside: it lies in the room of another channel, so that nothing is heard where nobody is listened to.
    """

    mirror: ControllerSync
    check: Callable[[], None] = lambda: None
    look: float = LOOK_SECONDS
    latest: float = LATEST_SECONDS
    ended: Callable[[], object] = object
    allowance: RequestBudget = field(default_factory=lambda: RequestBudget(1e9))
    now: Callable[[], float] = time.monotonic
    continued: bool = False
    beside: bool = False
    _failing: float | None = None
    _said: str = ""
    _looked: float = float("-inf")
    _cost: float = 1.0
    _ended: object = None
    _trials: tuple[int, ...] = ()
    _workers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._local = RoomChannel(self.mirror.room)

    def assign(self, spec: TrialSpec) -> None:
        with self._reaching():
            for number in self._to_fence(spec):
                self.mirror.before_fence(spec.trial, number)
            self._local.assign(spec)
            self.mirror.push([spec.trial])

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        with self._reaching():
            self._local.stop(trial, attempt, cause, reason)
            self.mirror.push([trial])

    def drain(self, worker: str) -> None:
        with self._reaching():
            self._local.drain(worker)
            self.mirror.push([])

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        told = set(self._trials) - set(trials)  # what was written down of them last
        self._trials, self._workers = tuple(trials), tuple(workers)
        quiet = self.beside and not trials and not workers
        due = not quiet and self._is_due()
        if self._failing is not None and not due and not quiet:
            raise RetryLater(self._said)
        with self._reaching():
            self.mirror.push(sorted({*trials, *told}), lazily=True)
            if due:
                self._pull()
        return self._local.observe(trials, workers)

    def wait(self, clock: Clock, seconds: float) -> None:
        end = clock.now() + seconds
        while (left := end - clock.now()) > 0:
            clock.sleep(min(left, max(self.look, WAIT_SECONDS)))
            if clock.now() < end and self._is_due():
                try:
                    with self._reaching():
                        self._pull()
                except RetryLater:
                    continue  # the next observation says so
                if self._local.awaited():
                    return

    @contextmanager
    def within(self, room: Room, directory: str) -> Iterator[StoreChannel]:
        """The channel of a room that lies in this one's; whoever holds this room's lease holds that one too.

        Raises:
            ConfigError: the store refuses. RetryLater: it does not answer.
        """
        mirror = ControllerSync(PrefixStore(self.mirror.store, directory), room)
        with _brought(mirror, self.continued, self.check):
            yield replace(self, mirror=mirror, beside=True, _failing=None, _ended=None, _trials=(), _workers=())

    def _is_due(self) -> bool:
        """Whether it is time for a look: what the last one should have read is saved up, or is too old."""
        if self.ended() != self._ended:
            return True
        since = self.now() - self._looked
        return since >= self.latest or (since >= self.look and self.allowance.left() >= self._cost)

    def _pull(self) -> None:
        spent, ended, self._looked = self.allowance.spent, self.ended(), self.now()
        self.mirror.pull(self._trials, self._workers, self.allowance.left)
        self._cost = min(self.allowance.spent - spent + self.mirror.behind, self.allowance.most)
        if self._failing is not None and self.now() - self._failing > OUTAGE_SECONDS:
            self.mirror.epoch += 1
            self.mirror.pull(self._trials, self._workers)
        self._failing, self._ended = None, ended

    def _to_fence(self, spec: TrialSpec) -> list[int]:
        """Earlier attempts of a trial that may still be running, where this one is new."""
        room = self.mirror.room
        if room.attempt(spec.trial, spec.attempt).spec.exists():
            return []
        earlier = [number for number in room.attempts(spec.trial) if number < spec.attempt]
        files = {number: room.attempt(spec.trial, number) for number in earlier}
        return [number for number in earlier if not files[number].outcome.exists() and not files[number].fence.exists()]

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        self.check()
        try:
            yield
        except StoreError as error:
            self._failing = self.now() if self._failing is None else self._failing
            self._said = str(error)
            raise RetryLater(self._said) from error


@contextmanager
def mirrored(room: Room, url: str, holder: str, ended: Callable[[], object] = object) -> Iterator[StoreChannel]:
    """The channel of a room whose workers reach the store at this URL; holds the store's lease while the block runs.

    The caller holds this machine's lock of the room, and runs the controller inside the block.

    Args:
        holder: where this controller runs, for a person.
        ended: see `StoreChannel`.

    Raises:
        ConfigError: the store refuses, its client is not installed, or it holds another sweep.
        RetryLater: another controller holds the room, or the store does not answer.
    """
    with _told():
        store = MeteredStore(open_store(url), RequestBudget(REQUESTS_PER_MINUTE))
    with hold_store(room, store, Lease(store, holder, room.root / LEASE_RECORD)) as channel:
        channel.allowance, channel.ended = store.allowance, ended
        yield channel


@contextmanager
def hold_store(room: Room, store: ObjectStore, lease: Lease) -> Iterator[StoreChannel]:
    """The same with this store and lease; both a beginning and an end wait a while for a store that does not answer."""
    mirror = ControllerSync(store, room)
    continued: list[bool] = []
    with _told():
        _insist(lambda: continued.append(lease.acquire()))
    try:
        with _brought(mirror, continued[0], lease.check):
            yield StoreChannel(mirror, lease.check, continued=continued[0])
    finally:
        lease.release()


@contextmanager
def _brought(mirror: ControllerSync, continued: bool, check: Callable[[], None]) -> Iterator[None]:
    """Both sides of a room are brought to one state, before the block and after it."""
    with _told():
        _insist(lambda: mirror.start(continued))
    yield

    def put_all() -> None:
        try:
            check()
        except RetryLater as error:  # the lease may be renewed in a moment
            raise StoreError(str(error)) from error
        mirror.push(mirror.room.trials())

    with _told():
        _insist(put_all)


def _insist(act: Callable[[], object]) -> None:
    if error := retry(act, PATIENCE_SECONDS):
        raise error


def pull(url: str, local: Path, light: bool = False) -> Room:
    """Bring a sweep's room from a store, or what has changed of it since the last time.

    Args:
        light: without checkpoints, steps, logs and adapters, which `status` and `best` do not need.

    Raises:
        ConfigError: there is no sweep, the room here is another one's, or the store refuses.
        RetryLater: it does not answer.
    """
    with _told():
        pull_room(open_store(url), Room(local), light)
    return Room(local)


def check_place(url: str, room: Room) -> None:
    """Refuse a room that is not the one at this URL; nothing is brought.

    Raises:
        ConfigError: it is another sweep's, or the store refuses. RetryLater: it does not answer.
    """
    with _told():
        check_same(open_store(url), room)


def send_wish(url: str, mode: Mode) -> None:
    """Tell the controller of this room, wherever it runs, what a person wants of it.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    with _told():
        open_store(url).put(CONTROL, mode.value.encode())


def put_file(url: str, key: str, data: bytes) -> None:
    """Put one file of this room, which no controller that runs would put.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    with _told():
        open_store(url).put(key, data)


def read_file(url: str, key: str) -> bytes | None:
    """One file of this room as the store has it.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    with _told():
        return open_store(url).get([key]).get(key)


def controller_at(url: str, local: Path) -> str:
    """Where the controller of this room runs, or died without a word; empty where none does.

    Args:
        local: the room here, whose controller does not run: a lease that this machine left behind is nobody's.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    with _told():
        return holder_of(open_store(url), read_text(local / LEASE_RECORD))


def await_end(url: str) -> bool:
    """Wait until the controller of this room has ended as it was told to; False where it died, or went on to another.

    Raises:
        ConfigError: the store refuses. RetryLater: it does not answer.
    """
    with _told():
        store = open_store(url)
        return await_release(store) and CONTROL not in store.get([CONTROL])


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoreRefusedError as error:
        raise ConfigError(str(error)) from error
    except StoreError as error:
        raise RetryLater(str(error)) from error


__all__ = [
    "ObjectStore",
    "StoreChannel",
    "await_end",
    "check_place",
    "controller_at",
    "mirrored",
    "pull",
    "put_file",
    "read_file",
    "send_wish",
]
