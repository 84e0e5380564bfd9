"""The ports of a controller into a simulated world.

Invariant: the controller, its decisions and its study are those of any other queue; only the time is simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sweep.controller.ports import Clock, ObservedAttempt, ObservedWorker, Ports, SearchStudy, WorkerSpec
from sweep.model.effects import Tell
from sweep.model.facts import Job, StudyFacts, Verdict
from sweep.queues.simulated.changes import Watch
from sweep.queues.simulated.state import SimulatedAttempt
from sweep.queues.simulated.world import World
from sweep.search.strategy.protocol import Promotion
from trainer.contract import Report, StopCause, TrialSpec

# Simulated seconds between two heartbeats; a job is cancelled only after a longer silence.
BEAT_SECONDS = 30.0
T = TypeVar("T")


@dataclass(slots=True)
class SimulatedDispatcher:
    """A `Dispatcher` (see `ports`) for simulated workers."""

    world: World

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        for worker in workers:
            self.world.start(worker.name, worker.place)

    def poll(self) -> Mapping[str, Job]:
        return dict(self.world.jobs)

    def cancel(self, workers: Sequence[str]) -> None:
        for name in workers:
            self.world.kill(name, "it was cancelled")

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        simulation_model, table = self.world.simulation_model, self.world.table
        return (
            f"{workers[0].name} …: simulated, over {table.path} ({len(table.rows)} trials of {table.milestones} "
            f"milestones); a whole trial takes {simulation_model.trial_seconds:g} s"
        )


@dataclass(slots=True)
class SimulatedClock:
    """A `Clock` (see `ports`) whose time passes without waiting."""

    world: World

    def now(self) -> float:
        return self.world.now

    def sleep(self, seconds: float) -> None:
        self.world.advance(self.world.now + seconds)


@dataclass(slots=True)
class SimulatedChannel:
    """A `Channel` (see `ports`) to simulated workers; it returns the same object for what has not changed.

    Args:
        look_seconds: seconds until a controller that waits observes what has happened.
    """

    world: World
    look_seconds: float = 0.2
    _shown: dict[int, dict[int, int]] = field(default_factory=dict)
    _attempts: dict[int, list[ObservedAttempt]] = field(default_factory=dict)
    _with_reports: set[int] = field(default_factory=set)
    _workers: dict[str, ObservedWorker] = field(default_factory=dict)
    _watch: Watch = field(init=False)
    _beat: int = 0
    _happened: int = -1

    def __post_init__(self) -> None:
        self._watch = self.world.changes.watch()

    def assign(self, spec: TrialSpec) -> None:
        self.world.assign(spec)

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        self.world.stop(trial, attempt, cause, reason)

    def drain(self, worker: str) -> None:
        self.world.drain(worker)

    def forget(self, trial: int) -> None:
        self._shown.pop(trial, None)
        self._attempts.pop(trial, None)
        self._with_reports.discard(trial)
        self.world.forget(trial)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        self._happened = self.world.changes.count
        self._forget()
        attempts, observed = self._attempts, self._workers
        return (
            {trial: attempts[trial] if trial in attempts else self._trial(trial) for trial in trials},
            {name: observed[name] if name in observed else self._worker(name) for name in workers},
        )

    def _forget(self) -> None:
        """Drop what has changed since the last observation, so that a round costs only what happened."""
        for trial in (*self._watch.trials, *self._with_reports):
            self._attempts.pop(trial, None)
        for name in self._watch.workers:
            self._workers.pop(name, None)
        beat = int(self.world.now // BEAT_SECONDS)
        if beat != self._beat:
            self._beat = beat
            self._workers.clear()
        for changed in (self._watch.trials, self._watch.workers, self._with_reports):
            changed.clear()

    def wait(self, clock: Clock, seconds: float) -> None:
        world = self.world
        end = clock.now() + seconds
        while world.changes.count == self._happened and world.next_event() <= end:
            world.advance(world.next_event())
        seen = clock.now() + self.look_seconds if world.changes.count != self._happened else end
        clock.sleep(max(0.0, min(seen, end) - clock.now()))

    def _trial(self, trial: int) -> list[ObservedAttempt]:
        attempts = self.world.attempts.get(trial) or self.world.recorded(trial)
        observed = [self._attempt(attempts[number]) for number in sorted(attempts)]
        if any(attempt.reports for attempt in observed):
            self._with_reports.add(trial)  # reports are shown once
        self._attempts[trial] = observed
        return observed

    def _attempt(self, attempt: SimulatedAttempt) -> ObservedAttempt:
        spec = attempt.spec
        of_trial = self._shown.setdefault(spec.trial, {})
        shown = of_trial.get(spec.attempt, 0)
        of_trial[spec.attempt] = len(attempt.reports)
        return ObservedAttempt(
            number=spec.attempt,
            worker=spec.worker,
            delivered=True,
            begun=True,
            stop=attempt.stop,
            stop_reason=attempt.stop_reason,
            outcome=attempt.outcome,
            reports=tuple(attempt.reports[shown:]),
        )

    def _worker(self, name: str) -> ObservedWorker:
        worker = self.world.workers.get(name)
        if worker is None:
            observed = ObservedWorker(name, None, 0, False)
        else:
            beat = str(self._beat) if worker.ready else None
            observed = ObservedWorker(name, beat, worker.assigned, worker.draining)
        self._workers[name] = observed
        return observed


@dataclass(slots=True)
class ChargedStudy:
    """A `SearchStudy` (see `ports`) whose own computing time passes on the simulated clock too."""

    study: SearchStudy
    clock: Clock

    def ask(self) -> int:
        return self._charged(self.study.ask)

    def params(self, number: int) -> Mapping[str, Any]:
        return self.study.params(number)

    def record(
        self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True
    ) -> Verdict | None:
        if not reports:
            return self.study.record(number, reports, worker, new_allowed)
        return self._charged(lambda: self.study.record(number, reports, worker, new_allowed))

    def objective(self, number: int) -> float | None:
        return self.study.objective(number)

    def tell(self, result: Tell, tokens: int, seconds: float = 0.0) -> None:
        self._charged(lambda: self.study.tell(result, tokens, seconds))

    def facts(self) -> StudyFacts:
        return self.study.facts()

    def restore_pause(self, number: int, reason: str) -> None:
        self.study.restore_pause(number, reason)

    def suspend(self, number: int, trained: bool = False) -> None:
        self.study.suspend(number, trained)

    def promote(self, new_allowed: bool, worker: str = "") -> Promotion | None:
        return self._charged(lambda: self.study.promote(new_allowed, worker))

    def trials_without_reports(self) -> Sequence[int]:
        return self.study.trials_without_reports()

    def restore_reports(self, number: int, reports: Sequence[Report]) -> None:
        self.study.restore_reports(number, reports)

    def ask_final(self) -> int:
        return self.study.ask_final()

    def _charged(self, act: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return act()
        finally:
            self.clock.sleep(time.perf_counter() - began)


def simulated_ports(world: World, study: SearchStudy, look_seconds: float = 0.2, charge: bool = True) -> Ports:
    """The ports of a controller into a simulated world.

    Args:
        charge: whether the study's own time passes on the clock too; if not, a sweep depends on its seeds only.
    """
    clock = SimulatedClock(world)
    channel = SimulatedChannel(world, look_seconds)
    return Ports(ChargedStudy(study, clock) if charge else study, channel, SimulatedDispatcher(world), clock)
