"""How specifications, stops, reports and outcomes travel: through the room.

Invariants: writes the controller's files only; every write is safe to repeat; a report is shown once to each
`RoomChannel`, also where a look fails in the middle, and all of them again to a new one.
"""

from __future__ import annotations

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
)
from trainer.room import Room, Tail, read_json, read_text, write_atomic

# How often a waiting controller looks whether an outcome or a first beat has come: a few system calls each time.
WAIT_SECONDS = 0.01


class RoomChannel:
    """A `Channel` (see `ports`) over a directory that controller and workers share."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._tails: dict[tuple[int, int], Tail] = {}
        self._workers: dict[tuple[int, int], str] = {}
        self._awaited: list[Path] = []
        self._unshown: dict[tuple[int, int], list[Report]] = {}  # read in a look that failed before it was over

    def assign(self, spec: TrialSpec) -> None:
        self.propose(spec)
        self._room.worker(spec.worker).assign(spec.trial, spec.attempt)

    def propose(self, spec: TrialSpec) -> None:
        """The first half of an assignment: all of it but that it counts as delivered."""
        attempt = self._room.attempt(spec.trial, spec.attempt)
        if not attempt.spec.exists():
            self._fence_off(spec)
            write_atomic(attempt.spec, encode(spec))

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        path = self._room.attempt(trial, attempt).stop
        if not path.exists():
            write_atomic(path, f"{cause}\n{reason}")

    def drain(self, worker: str) -> None:
        drain = self._room.worker(worker).drain
        if not drain.exists():  # it may say more: that nobody waits for this worker at all
            write_atomic(drain, "")

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        # a worker's outcome is read before its reports, so that an outcome never outruns the reports behind it
        inboxes = {name: set(self._room.worker(name).assignments()) for name in workers}
        attempts = {trial: [self._attempt(trial, n, inboxes) for n in self._room.attempts(trial)] for trial in trials}
        seen = {name: self._worker(name, len(inboxes[name])) for name in workers}
        last = [(trial, sights[-1].number) for trial, sights in attempts.items() if sights and not sights[-1].outcome]
        self._awaited = [self._room.attempt(*attempt).outcome for attempt in last]
        self._awaited += [self._room.worker(name).beat for name in workers if seen[name].beat is None]
        self._unshown.clear()
        return attempts, seen

    def wait(self, clock: Clock, seconds: float) -> None:
        end = clock.now() + seconds
        while clock.now() < end and not self.awaited():
            clock.sleep(min(seconds, WAIT_SECONDS))

    def awaited(self) -> bool:
        """Whether an attempt of the last observation has ended since, or a worker has got ready."""
        return any(path.exists() for path in self._awaited)

    def _fence_off(self, spec: TrialSpec) -> None:
        """The attempts before this one were lost, but may run on: nothing that they write counts, and they end."""
        for number in self._room.attempts(spec.trial):
            earlier = self._room.attempt(spec.trial, number)
            if number < spec.attempt and not earlier.outcome.exists():
                earlier.raise_fence()
                # else its worker has yet to begin it, or failed to start: it is not for us to let it go
                if earlier.reports.exists():
                    self.drain(self._worker_of(spec.trial, number))

    def _attempt(self, trial: int, number: int, inboxes: dict[str, set[tuple[int, int]]]) -> ObservedAttempt:
        files = self._room.attempt(trial, number)
        worker = self._worker_of(trial, number)
        outcome = _outcome(read_text(files.outcome))
        tail = self._tails.setdefault((trial, number), Tail(files.reports))
        stop = read_text(files.stop)
        cause, _, reason = (stop or "").partition("\n")
        inbox = inboxes.get(worker)
        lines = tail.lines(files.counted())
        reports = self._unshown.setdefault((trial, number), [])
        reports += [report for line in lines if (report := _report(line)) is not None]
        return ObservedAttempt(
            number=number,
            worker=worker,
            delivered=inbox is None or (trial, number) in inbox,
            begun=outcome is not None or files.reports.exists(),
            stop=StopCause(cause) if cause else None,
            stop_reason=reason,
            outcome=outcome,
            reports=tuple(reports),
        )

    def _worker_of(self, trial: int, number: int) -> str:
        key = (trial, number)
        if key not in self._workers:
            spec = read_json(self._room.attempt(trial, number).spec) or {}
            self._workers[key] = str(spec.get("worker", ""))
        return self._workers[key]

    def _worker(self, name: str, assigned: int) -> ObservedWorker:
        files = self._room.worker(name)
        slots = (read_text(files.slots) or "").strip()
        return ObservedWorker(
            name, read_text(files.beat), assigned, files.drain.exists(), int(slots) if slots.isdigit() else None
        )


def _outcome(text: str | None) -> Outcome | None:
    if text is None:
        return None
    try:
        return decode(Outcome, text)
    except ContractError as error:
        return Outcome(OutcomeKind.FAILED, f"its outcome cannot be read: {error}", failure=FailureKind.ERROR)


def _report(line: str) -> Report | None:
    try:
        return decode(Report, line)
    except ContractError:
        return None  # a line that a full disk tore in the middle; its milestone is repeated by the next attempt
