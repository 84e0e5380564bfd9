"""A worker process: it trains the trials of its inbox, one for each slot at a time, and keeps the base between them.

Invariants: it writes to its own directory and to those of its attempts only. It takes an assignment once, and only if
the attempt has no outcome. SIGTERM, SIGINT and SIGUSR2 stop its trials with a checkpoint, and their outcomes say
`preempted`. The beat starts when the worker can train, and ends with the process. It ends, and writes nothing more,
when its room was deleted or is another sweep's (`trainer.presence`). It never makes a room.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import (
    FailureKind,
    Outcome,
    OutcomeKind,
    Report,
    Step,
    StopCause,
    TrialSpec,
    encode,
    read_message,
    read_stop,
)
from trainer.failures import describe
from trainer.identity import own_identity
from trainer.presence import RoomLostError, RoomPresence
from trainer.reporter import Reporters, RoomReporter
from trainer.room import (
    AttemptDir,
    Room,
    WorkerDir,
    check_inside,
    hold,
    make_directory,
    open_lock,
    remove_stale_scratch,
    write_atomic,
    write_lock,
)
from trainer.scheduler import Scheduler
from trainer.space import is_no_space
from trainer.task import Task
from trainer.working_directory import enter_directory

if TYPE_CHECKING:
    from trainer.tracking.tracker import Tracker

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
STOP_POLL_SECONDS = 0.1
BEAT_SECONDS = 1.0
# An outcome that cannot be written, although there is space or the worker must end, is tried this often.
OUTCOME_TRIES = 60
OUTCOME_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class Worker:
    """A worker of a room.

    Args:
        name: its name in the room.
        trials: how many attempts it takes before it ends; 0 for no limit.
        idle_seconds: how long it waits for an assignment before it ends.
        ends_at: when it stops its trials with a checkpoint, before its job's time limit (monotonic clock, s).
        slots: attempts at the same time; 0: it chooses by measuring, and writes the number to its directory.
        token: of the sweep that it was started for; empty: a sweep of an old version.
    """

    room: Room
    name: str
    trials: int = 0
    idle_seconds: float = 900.0
    ends_at: float = float("inf")
    slots: int = 1
    token: str = ""
    _presence: RoomPresence = field(init=False)
    _checked_at: float = float("-inf")
    _cache: Cache = field(default_factory=Cache)
    _signal_reason: str = ""
    _taken: set[tuple[int, int]] = field(default_factory=set)
    _trackers: list[Tracker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._presence = RoomPresence(self.room, self.token)

    @property
    def dir(self) -> WorkerDir:
        return self.room.worker(self.name)

    def run(self) -> str:
        """Train the trials of the inbox until the worker is drained, ended, idle for too long, or at its number of
        trials.

        Returns:
            why it ended.

        Raises:
            RoomLostError: its room was deleted, or is another sweep's.
        """
        self.check_room()
        if self.dir.lock.exists():  # a process that deletes it takes the worker's name away
            self._presence.own = self.dir.lock
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        remove_stale_scratch(self.dir.path)
        with self._beat_while_running():
            reason = self._serve()
            while (task := self._next()) is not None:  # it came too late: with an outcome, it does not count as lost
                stopped = Outcome(OutcomeKind.STOPPED, f"its worker ended: {reason}", cause=StopCause.PREEMPTED)
                self._end(self.room.attempt(*task), stopped)
            self._wait_for_tracking()
        return reason

    def _serve(self) -> str:
        idle_since = time.monotonic()
        scheduler = Scheduler(self.slots, self._cache, self._announce)
        while scheduler.busy or not self.end_reason:
            self.check_room(anew=False)
            self._assign_free_slots(scheduler)
            if scheduler.busy:
                scheduler.step()
                idle_since = time.monotonic()
            elif self.trials and len(self._taken) >= self.trials:
                return f"it has taken its {self.trials} trials"
            elif self.dir.drain.exists():
                return "it was drained"
            elif time.monotonic() - idle_since > self.idle_seconds:
                return f"it was idle for {self.idle_seconds:g} s"
            else:
                time.sleep(POLL_SECONDS)
        return self.end_reason

    def _assign_free_slots(self, scheduler: Scheduler) -> None:
        """Give the scheduler an assignment for each free slot; if the worker must end, end what has not begun."""
        if reason := self.end_reason:
            scheduler.end_waiting(Outcome(OutcomeKind.STOPPED, f"its worker ends: {reason}", cause=StopCause.PREEMPTED))
            return
        while scheduler.free > 0 and not (self.trials and len(self._taken) >= self.trials):
            task = self._next()
            if task is None:
                return
            self._begin(scheduler, *task)

    def _announce(self, slots: int) -> None:
        self.check_room()
        write_atomic(self.dir.slots, str(slots), durable=False, root=self.room.root)

    def _next(self) -> tuple[int, int] | None:
        for task in self.dir.assignments():
            if task not in self._taken:
                self._taken.add(task)
                if not self.room.attempt(*task).outcome.exists():
                    return task
        return None

    def _begin(self, scheduler: Scheduler, trial: int, number: int) -> None:
        attempt = self.room.attempt(trial, number)
        spec = read_message(TrialSpec, attempt.spec)
        if not isinstance(spec, TrialSpec):
            reason = f"its specification cannot be read ({spec or 'it is gone'})"
            self._end(attempt, Outcome(OutcomeKind.FAILED, reason, failure=FailureKind.PASSING))
            return
        if self.token and spec.token != self.token:
            raise RoomLostError(f"trial {trial} attempt {number} is another sweep's; this process ends")
        _log.info("trial %d attempt %d starts", trial, number)
        enter_directory(spec.directory, spec.components)
        try:
            check_inside(attempt.path, self.room.root)
            files = RoomReporter(attempt)
        except OSError as error:
            failure = FailureKind.NO_SPACE if is_no_space(error) else FailureKind.PASSING
            self._end(attempt, Outcome(OutcomeKind.FAILED, describe(error), failure=failure))
            return
        tracker = self._track(spec)
        reporter = Reporters((RoomGuard(self), files, *([tracker] if tracker else [])))
        should_stop = StopPoll(self, attempt, tracker)

        def end(outcome: Outcome) -> None:
            reporter.close(outcome)
            _log.info("trial %d attempt %d %s: %s", trial, number, outcome.kind, outcome.reason or "done")
            self._end(attempt, outcome)

        if spec.evaluate is not None:
            from trainer.evaluation.evaluate import evaluate

            end(evaluate(self.room, spec, self._cache, should_stop))
            return
        logged = tracker.logged if tracker else dict
        scheduler.add(Task(spec, lambda: Attempt(self.room, spec, self._cache, reporter, should_stop, logged), end))

    def _end(self, attempt: AttemptDir, outcome: Outcome) -> None:
        """Write an outcome. While the disk is full, wait for space: without its outcome the trial would count as lost.

        Raises:
            RoomLostError: the room was deleted, or is another sweep's.
            SystemExit: the outcome could not be written for a minute, for another reason or while the worker must end.
        """
        failed = 0
        while failed < OUTCOME_TRIES:
            self.check_room()
            try:
                write_atomic(attempt.outcome, encode(outcome), root=self.room.root)
                return
            except OSError as error:
                _log.warning("the outcome is not written yet, retrying: %s", error)
                if self.end_reason or not is_no_space(error):
                    failed += 1
                time.sleep(OUTCOME_RETRY_SECONDS)
        raise SystemExit(
            f"the outcome could not be written to {attempt.outcome}; the controller will take the worker for lost"
        )

    def _track(self, spec: TrialSpec) -> Tracker | None:
        if spec.tracking is None:
            return None
        from trainer.tracking.tracker import Tracker

        self._trackers = [tracker for tracker in self._trackers if not tracker.wait(0)]
        tracker = Tracker(self.room, spec, spec.tracking)
        self._trackers.append(tracker)
        return tracker

    def _wait_for_tracking(self) -> None:
        began = time.monotonic()
        unfinished = sum(not t.wait(max(0.0, began + t.patience - time.monotonic())) for t in self._trackers)
        if unfinished:
            _log.warning("W&B has not received all of %d attempts; run `sweep sync` to upload the rest", unfinished)

    def check_room(self, anew: bool = True) -> None:
        """Return if the room is the worker's own; wait while it is absent.

        Args:
            anew: look now; otherwise only if the last look is `STOP_POLL_SECONDS` old.

        Raises:
            RoomLostError: it was deleted, or is another sweep's.
        """
        now = time.monotonic()
        if anew or now - self._checked_at >= STOP_POLL_SECONDS:
            self._checked_at = now
            self._presence.check()

    @contextmanager
    def _beat_while_running(self) -> Iterator[None]:
        """Increment the counter in the beat file while the block runs, as long as the room is the worker's own."""
        done = threading.Event()
        presence = RoomPresence(self.room, self.token, self._presence.own)  # of this thread

        def beat() -> None:
            count = 0
            while True:
                count += 1
                with suppress(OSError):  # on a full disk the attempt fails; the next beat retries
                    if not presence.problem() and not presence.absent:
                        write_atomic(self.dir.beat, str(count), durable=False, root=self.room.root)
                if done.wait(BEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @property
    def end_reason(self) -> str:
        """Why the worker must end now; empty if it need not."""
        if time.monotonic() >= self.ends_at:
            return "the time limit of its job is near"
        return self._signal_reason

    @property
    def signalled(self) -> bool:
        """Whether a signal has asked it to end."""
        return bool(self._signal_reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal_reason = f"it received {signal.Signals(number).name}"


@dataclass(slots=True)
class StopPoll:
    """A `StopSignal` that reads the room at most every `STOP_POLL_SECONDS`, since its file system may be slow."""

    worker: Worker
    attempt: AttemptDir
    tracker: Tracker | None = None
    _polled_at: float = float("-inf")

    def __call__(self) -> tuple[StopCause, str] | None:
        now = time.monotonic()
        polls = now - self._polled_at >= STOP_POLL_SECONDS
        reason = self.worker.end_reason
        if polls or reason:
            self._polled_at = now
            self.worker.check_room()
        if reason:
            return StopCause.PREEMPTED, f"its worker ends: {reason}"
        if not polls:
            return None
        if os.path.lexists(self.attempt.fence):
            return StopCause.CANCELLED, "a newer attempt has replaced this one"
        stop = read_stop(self.attempt.stop)
        if isinstance(stop, tuple):
            return stop
        return self.tracker.stop_request() if self.tracker is not None else None


@dataclass(frozen=True, slots=True)
class RoomGuard:
    """A `Reporter` that lets nothing be written into a room that is another sweep's by now.

    It comes first, before the files of the attempt. Checkpoint and adapter are written after a report.
    """

    worker: Worker

    def step(self, step: Step) -> None:
        self.worker.check_room(anew=False)

    def report(self, report: Report) -> None:
        self.worker.check_room()

    def adapter(self, path: Path) -> None:
        self.worker.check_room()

    def close(self, outcome: Outcome | None) -> None:
        pass


def run_worker(room: Room, worker: Worker, lock_held: bool) -> int:
    """Run a worker under the lock of its name, so that two processes never serve one name.

    Args:
        lock_held: the parent process holds the lock and has handed it down.

    Returns:
        the exit code: 0, or 1 if another process serves this name.

    Raises:
        RoomLostError: its room was deleted, or is another sweep's.
    """
    worker.check_room()
    lock = room.worker(worker.name).lock
    if lock_held:
        with open_lock(lock) as file:
            write_lock(file, own_identity())
        worker.run()
        return 0
    make_directory(lock.parent, room.root)
    with hold(lock, own_identity()) as mine:
        if not mine:
            _log.error("worker %s is already running in another process", worker.name)
            return 1
        worker.run()
    return 0
