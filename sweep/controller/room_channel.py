"""A `Channel` over a directory that the controller and its workers share: the sweep's room.

Invariants: writes only the controller's files, and every write is safe to repeat. Each `RoomChannel` shows a report
once, even if an observation fails in the middle; a new one shows all reports again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sweep.controller.ports import Clock, ObservedAttempt, ObservedWorker
from trainer.contract import (
    ContractError,
    FailureKind,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    TrialSpec,
    decode,
    encode,
    read_message,
    read_stop,
)
from trainer.names import name_or_empty
from trainer.room import Damage, Room, Tail, read_object, read_text, write_atomic

_log = logging.getLogger(__name__)

# What a worker can choose.
MAX_SLOTS = 4096
# How often a waiting controller checks for an outcome or a first beat; each check takes a few system calls.
WAIT_SECONDS = 0.01


class RoomChannel:
    """A `Channel` (see `ports`) over a room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._tails: dict[tuple[int, int], Tail] = {}
        self._workers: dict[tuple[int, int], str] = {}
        self._awaited: list[Path] = []
        self._damages: set[Damage] = set()  # that were said
        self._not_shown: dict[tuple[int, int], list[Report]] = {}  # read by an observation that then failed

    def assign(self, spec: TrialSpec) -> None:
        self.write_spec(spec)
        self._room.worker(spec.worker).assign(spec.trial, spec.attempt)

    def write_spec(self, spec: TrialSpec) -> None:
        """The first half of an assignment: the attempt exists, but is not in its worker's inbox."""
        attempt = self._room.attempt(spec.trial, spec.attempt)
        if not attempt.spec.exists():
            self._fence_earlier_attempts(spec)
            write_atomic(attempt.spec, encode(spec), root=self._room.root)

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        path = self._room.attempt(trial, attempt).stop
        if not isinstance(read_stop(path), tuple):  # a damaged one asks for nothing
            write_atomic(path, f"{cause}\n{reason}", root=self._room.root)

    def drain(self, worker: str) -> None:
        drain = self._room.worker(worker).drain
        if not drain.exists():  # an existing file may say more: that the worker is not waited for
            write_atomic(drain, "", root=self._room.root)

    def forget(self, trial: int) -> None:
        for number in self._room.attempts(trial):
            for kept in (self._tails, self._workers, self._not_shown):
                kept.pop((trial, number), None)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        inboxes = {name: set(self._room.worker(name).assignments()) for name in workers}
        attempts = {trial: [self._attempt(trial, n, inboxes) for n in self._room.attempts(trial)] for trial in trials}
        observed_workers = {name: self._worker(name, len(inboxes[name])) for name in workers}
        self._await(attempts, observed_workers)
        self._not_shown.clear()
        return attempts, observed_workers

    def wait(self, clock: Clock, seconds: float) -> None:
        end = clock.now() + seconds
        while clock.now() < end and not self.has_news():
            clock.sleep(min(seconds, WAIT_SECONDS))

    def has_news(self) -> bool:
        """Whether an attempt of the last observation has ended since, or one of its workers has become ready."""
        return any(path.exists() for path in self._awaited)

    def _await(self, attempts: dict[int, list[ObservedAttempt]], workers: dict[str, ObservedWorker]) -> None:
        """Note the files that would be news: outcomes of last attempts, and first beats."""
        running = [(trial, shown[-1].number) for trial, shown in attempts.items() if shown and not shown[-1].outcome]
        self._awaited = [self._room.attempt(*attempt).outcome for attempt in running]
        self._awaited += [self._room.worker(name).beat for name, worker in workers.items() if worker.beat is None]

    def _fence_earlier_attempts(self, spec: TrialSpec) -> None:
        """Fence off earlier attempts: they were lost but may still run, and nothing that they write counts."""
        for number in self._room.attempts(spec.trial):
            earlier = self._room.attempt(spec.trial, number)
            if number < spec.attempt and not earlier.outcome.exists():
                earlier.raise_fence()
                # without reports its worker has not begun it yet, or failed to start; such a worker is not drained
                if earlier.reports.exists() and (worker := self._worker_of(spec.trial, number)):
                    self.drain(worker)

    def _attempt(self, trial: int, number: int, inboxes: dict[str, set[tuple[int, int]]]) -> ObservedAttempt:
        files = self._room.attempt(trial, number)
        worker = self._worker_of(trial, number)
        outcome = self._outcome(read_message(Outcome, files.outcome))  # before the reports: never shown without them
        stop = read_stop(files.stop)
        cause, reason = stop if isinstance(stop, tuple) else (None, "")
        inbox = inboxes.get(worker)
        reports = self._new_reports(trial, number)
        return ObservedAttempt(
            number=number,
            worker=worker,
            delivered=inbox is None or (trial, number) in inbox,
            begun=outcome is not None or files.reports.exists(),
            stop=cause,
            stop_reason=reason,
            outcome=outcome,
            reports=reports,
        )

    def _outcome(self, outcome: Outcome | Damage | None) -> Outcome | None:
        """The outcome that was read; if its file is damaged, a failure that another attempt repairs, said once."""
        if not isinstance(outcome, Damage):
            return outcome
        if outcome not in self._damages:
            self._damages.add(outcome)
            _log.warning("%s; this attempt counts as lost", outcome)
        return Outcome(OutcomeKind.FAILED, f"its outcome cannot be read ({outcome})", failure=FailureKind.PASSING)

    def _new_reports(self, trial: int, number: int) -> tuple[Report, ...]:
        files = self._room.attempt(trial, number)
        tail = self._tails.setdefault((trial, number), Tail(files.reports))
        reports = self._not_shown.setdefault((trial, number), [])
        reports += [report for line in tail.lines(files.counted()) if (report := _report(line)) is not None]
        return tuple(reports)

    def _worker_of(self, trial: int, number: int) -> str:
        key = (trial, number)
        if key not in self._workers:
            spec = read_object(self._room.attempt(trial, number).spec)
            self._workers[key] = name_or_empty(spec.get("worker")) if isinstance(spec, dict) else ""
        return self._workers[key]

    def _worker(self, name: str, assigned: int) -> ObservedWorker:
        files = self._room.worker(name)
        return ObservedWorker(
            name=name,
            beat=read_text(files.beat),
            assigned=assigned,
            draining=files.drain.exists(),
            slots=_slots(read_text(files.slots) or ""),
        )


def _slots(text: str) -> int | None:
    """The number of slots that a worker has chosen; None if it has chosen none, or its file is damaged."""
    text = text.strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0
    return number if 1 <= number <= MAX_SLOTS else None


def _report(line: str) -> Report | None:
    try:
        return decode(Report, line)
    except ContractError:
        return None  # a crash has damaged this line; without the final report the trial does not end as COMPLETE
