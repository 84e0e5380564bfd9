"""A worker process: it trains the trials of its inbox, one for each slot at a time, and keeps the base between them.

Invariants: it writes to its own directory and to those of its attempts only. It takes an assignment once, and only if
the attempt has no outcome. SIGTERM, SIGINT and SIGUSR2 stop its trials with a checkpoint, and their outcomes say
`preempted`. The beat starts when the worker can train, and ends with the process.
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
from types import FrameType
from typing import TYPE_CHECKING

from trainer.attempt import Attempt, describe
from trainer.base import Cache
from trainer.contract import (
    ContractError,
    FailureKind,
    Outcome,
    OutcomeKind,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.reporter import Reporters, RoomReporter
from trainer.room import AttemptDir, Room, WorkerDir, hold, read_text, write_atomic
from trainer.scheduler import Scheduler, Task
from trainer.space import is_no_space

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
    """

    room: Room
    name: str
    trials: int = 0
    idle_seconds: float = 900.0
    ends_at: float = float("inf")
    slots: int = 1
    _cache: Cache = field(default_factory=Cache)
    _signal_reason: str = ""
    _taken: set[tuple[int, int]] = field(default_factory=set)
    _trackers: list[Tracker] = field(default_factory=list)

    @property
    def dir(self) -> WorkerDir:
        return self.room.worker(self.name)

    def run(self) -> str:
        """Train the trials of the inbox until the worker is drained, ended, idle for too long, or at its number of
        trials.

        Returns:
            why it ended.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        with _beat_while_running(self.dir):
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
        write_atomic(self.dir.slots, str(slots), durable=False)

    def _next(self) -> tuple[int, int] | None:
        for task in self.dir.assignments():
            if task not in self._taken:
                self._taken.add(task)
                if not self.room.attempt(*task).outcome.exists():
                    return task
        return None

    def _begin(self, scheduler: Scheduler, trial: int, number: int) -> None:
        attempt = self.room.attempt(trial, number)
        try:
            spec = decode(TrialSpec, read_text(attempt.spec) or "")
        except ContractError as error:
            self._end(attempt, Outcome(OutcomeKind.FAILED, str(error), failure=FailureKind.BAD_CONFIG))
            return
        _log.info("trial %d attempt %d starts", trial, number)
        try:
            files = RoomReporter(attempt)
        except OSError as error:
            failure = FailureKind.NO_SPACE if is_no_space(error) else FailureKind.PASSING
            self._end(attempt, Outcome(OutcomeKind.FAILED, describe(error), failure=failure))
            return
        tracker = self._track(spec)
        reporter = Reporters((files, *([tracker] if tracker else [])))
        should_stop = StopPoll(self, attempt, tracker)

        def end(outcome: Outcome) -> None:
            reporter.close(outcome)
            _log.info("trial %d attempt %d %s: %s", trial, number, outcome.kind, outcome.reason or "done")
            self._end(attempt, outcome)

        if spec.evaluate is not None:
            from trainer.evaluation.evaluate import evaluate

            end(evaluate(self.room, spec, self._cache, should_stop))
            return
        scheduler.add(Task(spec, lambda: Attempt(self.room, spec, self._cache, reporter, should_stop), end))

    def _end(self, attempt: AttemptDir, outcome: Outcome) -> None:
        """Write an outcome. While the disk is full, wait for space: without its outcome the trial would count as lost.

        Raises:
            SystemExit: the outcome could not be written for a minute, for another reason or while the worker must end.
        """
        failed = 0
        while failed < OUTCOME_TRIES:
            try:
                write_atomic(attempt.outcome, encode(outcome))
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
        if reason := self.worker.end_reason:
            return StopCause.PREEMPTED, f"its worker ends: {reason}"
        now = time.monotonic()
        if now - self._polled_at < STOP_POLL_SECONDS:
            return None
        self._polled_at = now
        if self.attempt.fence.exists():
            return StopCause.CANCELLED, "a newer attempt has replaced this one"
        text = read_text(self.attempt.stop)
        if text is None:
            return self.tracker.stop_request() if self.tracker is not None else None
        cause, _, reason = text.partition("\n")
        return StopCause(cause), reason


def run_worker(room: Room, worker: Worker, lock_held: bool) -> int:
    """Run a worker under the lock of its name, so that two processes never serve one name.

    Args:
        lock_held: the parent process holds the lock and has handed it down.

    Returns:
        the exit code: 0, or 1 if another process serves this name.
    """
    lock = room.worker(worker.name).lock
    if lock_held:
        lock.write_text(f"{os.getpid()}\n")
        worker.run()
        return 0
    with hold(lock, str(os.getpid())) as mine:
        if not mine:
            _log.error("worker %s is already running in another process", worker.name)
            return 1
        worker.run()
    return 0


@contextmanager
def _beat_while_running(worker: WorkerDir) -> Iterator[None]:
    """Increment the counter in the beat file while the block runs."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            with suppress(OSError):  # on a full disk the attempt fails; the next beat retries
                write_atomic(worker.beat, str(count), durable=False)
            if done.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
