"""A worker process: it takes trials from its inbox, as many at a time as it has slots, and keeps the base between them.

Invariants: it writes only below its own directory and those of its attempts. It takes an assignment whose
attempt has no outcome, once. SIGTERM and SIGINT become a stop with a checkpoint, whose outcome says `preempted`.
The beat starts when the worker can train, and ends with the process.
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

from trainer.attempt import Attempt
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

if TYPE_CHECKING:
    from trainer.tracking.tracker import Tracker

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
STOP_POLL_SECONDS = 0.1
BEAT_SECONDS = 1.0


@dataclass(slots=True)
class Worker:
    """A worker of a room.

    Args:
        trials: how many attempts to take before it ends; 0 for no limit.
        idle_seconds: how long to wait for an assignment before it ends by itself.
        slots: attempts side by side; 0: as many as pay, which it measures, and says in its directory.
        ends_at: when to stop with a checkpoint, on this process's monotonic clock: before its job's time limit.
    """

    room: Room
    name: str
    trials: int = 0
    idle_seconds: float = 900.0
    ends_at: float = float("inf")
    slots: int = 1
    _cache: Cache = field(default_factory=Cache)
    _told_to_end: str = ""
    _taken: set[tuple[int, int]] = field(default_factory=set)
    _trackers: list[Tracker] = field(default_factory=list)

    @property
    def dir(self) -> WorkerDir:
        return self.room.worker(self.name)

    def run(self) -> str:
        """Train what the inbox asks for until drained, told to end, idle for too long, or at its number of trials.

        Returns:
            Why it ended.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        with _beating(self.dir):
            reason = self._serve()
            while (task := self._next()) is not None:  # it came too late: given back, and no lost attempt
                stopped = Outcome(OutcomeKind.STOPPED, f"its worker ended: {reason}", cause=StopCause.PREEMPTED)
                _end(self.room.attempt(*task), stopped)
            self._wait_for_tracking()
        return reason

    def _serve(self) -> str:
        idle_since = time.monotonic()
        scheduler = Scheduler(self.slots, self._cache, self._announce)
        while scheduler.busy or not self.told_to_end:
            self._take(scheduler)
            if scheduler.busy:
                scheduler.step()
                idle_since = time.monotonic()
            elif self.trials and len(self._taken) >= self.trials:
                return f"it took its {self.trials} trials"
            elif self.dir.drain.exists():
                return "it was drained"
            elif time.monotonic() - idle_since > self.idle_seconds:
                return f"it had nothing to do for {self.idle_seconds:g} s"
            else:
                time.sleep(POLL_SECONDS)
        return self.told_to_end

    def _take(self, scheduler: Scheduler) -> None:
        """Give the scheduler what it has room for; once told to end, hand back what it has not begun."""
        if reason := self.told_to_end:
            scheduler.give_back(Outcome(OutcomeKind.STOPPED, f"its worker ends: {reason}", cause=StopCause.PREEMPTED))
            return
        while scheduler.free > 0 and not (self.trials and len(self._taken) >= self.trials):
            task = self._next()
            if task is None:
                return
            self._give(scheduler, *task)

    def _announce(self, slots: int) -> None:
        write_atomic(self.dir.slots, str(slots), durable=False)

    def _next(self) -> tuple[int, int] | None:
        for task in self.dir.assignments():
            if task not in self._taken:
                self._taken.add(task)
                if not self.room.attempt(*task).outcome.exists():
                    return task
        return None

    def _give(self, scheduler: Scheduler, trial: int, number: int) -> None:
        attempt = self.room.attempt(trial, number)
        try:
            spec = decode(TrialSpec, read_text(attempt.spec) or "")
        except ContractError as error:
            _end(attempt, Outcome(OutcomeKind.FAILED, str(error), failure=FailureKind.BAD_CONFIG))
            return
        _log.info("trial %d attempt %d starts", trial, number)
        tracker = self._track(spec)
        reporter = Reporters((RoomReporter(attempt), *([tracker] if tracker else [])))
        should_stop = StopPoll(self, attempt, tracker)

        def end(outcome: Outcome) -> None:
            reporter.close(outcome)
            _log.info("trial %d attempt %d %s: %s", trial, number, outcome.kind, outcome.reason or "done")
            _end(attempt, outcome)

        if spec.evaluate is not None:
            from trainer.evaluation.evaluate import evaluate

            end(evaluate(self.room, spec, self._cache, should_stop))
            return
        scheduler.add(Task(spec, lambda: Attempt(self.room, spec, self._cache, reporter, should_stop), end))

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
        behind = sum(not t.wait(max(0.0, began + t.patience - time.monotonic())) for t in self._trackers)
        if behind:
            _log.warning("W&B has not received all of %d attempts; run `sweep sync` to upload the rest", behind)

    @property
    def told_to_end(self) -> str:
        """Why it must end now; empty while it need not."""
        if time.monotonic() >= self.ends_at:
            return "the time limit of its job is near"
        return self._told_to_end

    @property
    def signalled(self) -> bool:
        """Whether a signal told it to end."""
        return bool(self._told_to_end)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end = f"it was told to end by {signal.Signals(number).name}"


@dataclass(slots=True)
class StopPoll:
    """Looks for a stop at most ten times a second, so that a shared file system is not asked at every micro-batch."""

    worker: Worker
    attempt: AttemptDir
    tracker: Tracker | None = None
    _looked: float = float("-inf")

    def __call__(self) -> tuple[StopCause, str] | None:
        if reason := self.worker.told_to_end:
            return StopCause.PREEMPTED, f"its worker ends: {reason}"
        now = time.monotonic()
        if now - self._looked < STOP_POLL_SECONDS:
            return None
        self._looked = now
        if self.attempt.fence.exists():
            return StopCause.CANCELLED, "a newer attempt has taken over"
        text = read_text(self.attempt.stop)
        if text is None:
            return self.tracker.asked_to_stop() if self.tracker is not None else None
        cause, _, reason = text.partition("\n")
        return StopCause(cause), reason


def run_worker(room: Room, worker: Worker, lock_held: bool) -> int:
    """Run a worker under its name's lock, so that two processes never serve one name.

    Args:
        lock_held: the process that started this one holds the lock and has handed it down.

    Returns:
        The exit code: 0, or 1 where another process serves this name.
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


def _end(attempt: AttemptDir, outcome: Outcome) -> None:
    """Write the outcome, waiting for space where the disk is full: without it the trial would count as lost."""
    for _ in range(60):
        try:
            write_atomic(attempt.outcome, encode(outcome))
            return
        except OSError as error:
            _log.warning("the outcome is not written yet, retrying: %s", error)
            time.sleep(1.0)
    raise SystemExit(f"no outcome could be written to {attempt.outcome}; the controller will see a lost worker")


@contextmanager
def _beating(worker: WorkerDir) -> Iterator[None]:
    """Count in the beat file for as long as the block runs."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            with suppress(OSError):  # a full disk is the attempt's to report; the next beat tries again
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
