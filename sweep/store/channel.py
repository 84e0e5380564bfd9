"""A `Channel` over a room in an object store, and how a controller holds such a room.

    with hold(controller_lock(room), …) as mine, open_store_channel(room, url, whereabouts()) as channel:
        Controller(Ports(study, channel, …), …).run()

Invariants:

- An action is in the store when its call returns. If the store does not answer, the call raises `RetryLater` and may
  be repeated. No action begins without the lease.
- No observation is older than `max_age` seconds, or than the end of the last job that ended. So an attempt is taken
  for lost only after everything that it has put was read.
- While the store does not answer, nothing is observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sweep.controller.ports import Clock, ObservedAttempt, ObservedWorker
from sweep.controller.room_channel import WAIT_SECONDS, RoomChannel
from sweep.errors import RetryLater
from sweep.store.controller_sync import ControllerSync
from sweep.store.errors import as_sweep_errors
from sweep.store.lease import Lease
from sweep.store.remote import LEASE_RECORD
from sweep.store.request_budget import MeteredStore, RequestBudget
from trainer.clock import boot_seconds
from trainer.contract import StopCause, TrialSpec
from trainer.room import Room
from trainer.store.layout import PrefixStore
from trainer.store.objects import ObjectStore, StoreError, open_store, retry

# Between two pulls: at least, and at most.
MIN_INTERVAL_SECONDS = 2.0
MAX_AGE_SECONDS = 15.0
REQUESTS_PER_MINUTE = 60
# After the store has not answered for this long, workers may have put beats that nobody saw: their silence restarts.
OUTAGE_SECONDS = 5.0
# How long the beginning and the end of a controller's run wait for a store that does not answer.
RETRY_SECONDS = 60.0


@dataclass
class StoreChannel:
    """A `Channel` (see `ports`) over an object store.

    Args:
        check: raises if this controller may not act, because another may hold the lease.
        min_interval: seconds between two pulls at least, if requests are left for another.
        max_age: seconds between two pulls at most.
        job_ends: returns a value that changes whenever a job ends. The default returns a new value each time, so
            every observation pulls.
        budget: of requests.
        now: the local clock in seconds, time of suspension included.
        continued: no other controller has acted since the last one on this machine.
        nested: the room is part of another channel's room. Then nothing is pulled while nothing is open in it.
        _failing_since: when the store stopped answering; None while it answers.
        _pull_cost: how many requests the next pull is expected to need.
        _trials, _workers: those of the last observation.
    """

    sync: ControllerSync
    check: Callable[[], None] = lambda: None
    min_interval: float = MIN_INTERVAL_SECONDS
    max_age: float = MAX_AGE_SECONDS
    job_ends: Callable[[], object] = object
    budget: RequestBudget = field(default_factory=lambda: RequestBudget(1e9))
    now: Callable[[], float] = boot_seconds
    continued: bool = False
    nested: bool = False
    _failing_since: float | None = None
    _last_error: str = ""
    _pulled_at: float = -math.inf
    _pull_cost: float = 1.0
    _job_ends_pulled: object = None
    _trials: tuple[int, ...] = ()
    _workers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._local = RoomChannel(self.sync.room)

    def assign(self, spec: TrialSpec) -> None:
        with self._acting():
            for number in self._attempts_to_fence(spec):
                self.sync.before_fence(spec.trial, number)
            self._local.assign(spec)
            self.sync.push([spec.trial])

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        with self._acting():
            self._local.stop(trial, attempt, cause, reason)
            self.sync.push([trial])

    def drain(self, worker: str) -> None:
        with self._acting():
            self._local.drain(worker)
            self.sync.push([])

    def forget(self, trial: int) -> None:
        self._local.forget(trial)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[Mapping[int, list[ObservedAttempt]], Mapping[str, ObservedWorker]]:
        ended = set(self._trials) - set(trials)  # their last files have to be put too
        self._trials, self._workers = tuple(trials), tuple(workers)
        unused = self.nested and not trials and not workers
        pulls = not unused and self._is_pull_due()
        if self._failing_since is not None and not pulls and not unused:
            raise RetryLater(self._last_error)
        with self._acting():
            self.sync.push(sorted({*trials, *ended}), lazily=True)
            if pulls:
                self._pull()
        return self._local.observe(trials, workers)

    def wait(self, clock: Clock, seconds: float) -> None:
        end = clock.now() + seconds
        while (left := end - clock.now()) > 0:
            clock.sleep(min(left, max(self.min_interval, WAIT_SECONDS)))
            if clock.now() < end and self._is_pull_due():
                try:
                    with self._acting():
                        self._pull()
                except RetryLater:
                    continue  # the next observation raises it again
                if self._local.has_news():
                    return

    @contextmanager
    def within(self, room: Room, directory: str) -> Iterator[StoreChannel]:
        """The channel of a room that is part of this one; it is held together with this one.

        Args:
            room: the local copy of the part; `directory` is its key in this room.

        Raises:
            ConfigError: the store refuses.
            RetryLater: the store does not answer.
        """
        sync = ControllerSync(PrefixStore(self.sync.store, directory), room)
        with _synchronized(sync, self.continued, self.check):
            yield replace(
                self, sync=sync, nested=True, _failing_since=None, _job_ends_pulled=None, _trials=(), _workers=()
            )

    def _is_pull_due(self) -> bool:
        """Whether to pull now: a job has ended, enough requests are left for a pull, or the last one is too old."""
        if self.job_ends() != self._job_ends_pulled:
            return True
        age = self.now() - self._pulled_at
        return age >= self.max_age or (age >= self.min_interval and self.budget.left() >= self._pull_cost)

    def _pull(self) -> None:
        spent, job_ends, self._pulled_at = self.budget.spent, self.job_ends(), self.now()
        self.sync.pull(self._trials, self._workers, self.budget.left)
        self._pull_cost = min(self.budget.spent - spent + self.sync.unread, self.budget.capacity)
        if self._failing_since is not None and self.now() - self._failing_since > OUTAGE_SECONDS:
            self.sync.renew_beats()
            self.sync.pull(self._trials, self._workers)
        self._failing_since, self._job_ends_pulled = None, job_ends

    def _attempts_to_fence(self, spec: TrialSpec) -> list[int]:
        """Earlier attempts of a trial that may still be running, if this attempt is new."""
        room = self.sync.room
        if room.attempt(spec.trial, spec.attempt).spec.exists():
            return []
        earlier = [number for number in room.attempts(spec.trial) if number < spec.attempt]
        files = {number: room.attempt(spec.trial, number) for number in earlier}
        return [number for number in earlier if not files[number].outcome.exists() and not files[number].fence.exists()]

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Check the lease, then translate the store's errors in the block; note since when it does not answer."""
        self.check()
        try:
            yield
        except StoreError as error:
            self._failing_since = self.now() if self._failing_since is None else self._failing_since
            self._last_error = str(error)
            raise RetryLater(self._last_error) from error


@contextmanager
def open_store_channel(
    room: Room, url: str, holder: str, job_ends: Callable[[], object] = object
) -> Iterator[StoreChannel]:
    """The channel of a room whose workers reach the store at this URL; the lease is held while the block runs.

    The caller holds this machine's lock of the room, and runs the controller inside the block.

    Args:
        room: the local copy.
        holder: where this controller runs, as text for a person.
        job_ends: see `StoreChannel`.

    Raises:
        ConfigError: the store refuses, its client is not installed, or it holds another sweep.
        RetryLater: another controller holds the room, or the store does not answer.
    """
    with as_sweep_errors():
        store = MeteredStore(open_store(url), RequestBudget(REQUESTS_PER_MINUTE))
    with hold_store(room, store, Lease(store, holder, room.root / LEASE_RECORD)) as channel:
        channel.budget, channel.job_ends = store.budget, job_ends
        yield channel


@contextmanager
def hold_store(room: Room, store: ObjectStore, lease: Lease) -> Iterator[StoreChannel]:
    """`open_store_channel` with this store and lease; both ends wait a minute for a store that does not answer."""
    sync = ControllerSync(store, room)
    continued: list[bool] = []
    with as_sweep_errors():
        _with_retries(lambda: continued.append(lease.acquire()))
    try:
        with _synchronized(sync, continued[0], lease.check):
            yield StoreChannel(sync, lease.check, continued=continued[0])
    finally:
        lease.release()


@contextmanager
def _synchronized(sync: ControllerSync, continued: bool, check: Callable[[], None]) -> Iterator[None]:
    """Room and store agree at the beginning and at the end of the block."""
    with as_sweep_errors():
        _with_retries(lambda: sync.start(continued))
    yield

    def push_all() -> None:
        try:
            check()
        except RetryLater as error:  # the lease may be renewed in a moment
            raise StoreError(str(error)) from error
        sync.push(sync.room.trials())

    with as_sweep_errors():
        _with_retries(push_all)


def _with_retries(act: Callable[[], object]) -> None:
    if error := retry(act, RETRY_SECONDS):
        raise error
