"""Simulated workers that replay recorded curves in discrete-event time.

Invariants: nothing outside the process is changed, and no real time passes. What happens to an attempt depends on the
world's seed, the trial and the attempt; what happens to a worker depends on the seed and its name. Neither depends on
the order of what a controller does. A lost worker writes nothing more; its trials resume from their last checkpoint.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweep.model import Job, JobState
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import Table
from sweep.search.strategy.packed_reports import PackedReports
from trainer.contract import Outcome, OutcomeKind, Report, StopCause, TrialSpec

# The reason of an attempt that ends because its row has no further milestones.
RECORD_ENDS = "its record ends here"


@dataclass(slots=True, eq=False)
class SimAttempt:
    """An attempt in the world.

    Args:
        row: its row of the table.
        progress: milestones trained, with the fraction of the one that is being trained.
        slowness: factor by which it takes longer.
        dies: the progress at which its worker is lost or preempted; infinity: never.
        preempted: whether its worker is then preempted, and not lost.
        lap: when the current milestone was begun, on the world's clock.
        pace: seconds that a whole milestone takes now.
        turn: counts the begun milestones, so that an event of an earlier one is ignored.
        seconds: seconds trained.
    """

    spec: TrialSpec
    row: int
    progress: float
    slowness: float = 1.0
    dies: float = math.inf
    preempted: bool = False
    reports: Sequence[Report] = field(default_factory=list)
    stop: StopCause | None = None
    stop_reason: str = ""
    outcome: Outcome | None = None
    running: bool = False
    lap: float = 0.0
    pace: float = 0.0
    turn: int = 0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class SimWorker:
    """A worker in the world.

    Args:
        speed: factor by which it trains faster than the model's `trial_seconds`.
        held: the attempts that it trains.
        inbox: the attempts that wait for a slot.
    """

    name: str
    place: int
    speed: float
    job: Job
    ready: bool = False
    draining: bool = False
    assigned: int = 0
    held: list[SimAttempt] = field(default_factory=list)
    inbox: list[SimAttempt] = field(default_factory=list)


@dataclass(slots=True)
class Watch:
    """The trials and workers that have changed since one observer last cleared it."""

    trials: set[int] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)


class World:
    """Workers, attempts and the time.

    The configuration of a specification is flat: a value for each key of the table's grid, and perhaps a `seed`.
    `ended` is called with each attempt that gets an outcome or loses its worker. `recorded` returns the attempts of a
    trial that was forgotten. Unless it can, `keeps_ended` is True.

    Args:
        slots: attempts that one worker trains side by side.
    """

    def __init__(
        self,
        table: Table,
        simulation_model: SimulationModel,
        slots: int = 1,
        seed: int = 0,
    ) -> None:
        self.table, self.simulation_model, self.slots, self.seed = table, simulation_model, slots, seed
        self.now = 0.0
        self.workers: dict[str, SimWorker] = {}
        self.attempts: dict[int, dict[int, SimAttempt]] = {}
        self.jobs: dict[str, Job] = {}
        self._watches: list[Watch] = []
        self.ended: Callable[[SimAttempt], None] = lambda attempt: None
        self.recorded: Callable[[int], dict[int, SimAttempt]] = lambda trial: {}
        self.keeps_ended = True
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._happened = 0
        self._tokens = table.curves["tokens"]
        share = np.diff(self._tokens, axis=1, prepend=0.0) / self._tokens[:, -1:]
        self._share: list[list[float]] = share.tolist()  # lists, since each report reads single elements
        self._curves: dict[str, list[list[float]]] = {name: curve.tolist() for name, curve in table.curves.items()}
        self._progress: dict[int, float] = {}

    # --- time -------------------------------------------------------------------------------------------------

    def advance(self, until: float) -> None:
        """Let all events up to this time happen, and set the clock to it."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = max(self.now, until)

    def next_event(self) -> float:
        """The time of the next event; infinity if there is none."""
        return self._events[0][0] if self._events else math.inf

    @property
    def happened(self) -> int:
        """The number of changes that a controller may observe."""
        return self._happened

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Let something happen this many seconds from now."""
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, act))

    # --- workers ----------------------------------------------------------------------------------------------

    def start(self, name: str, place: int) -> None:
        """Submit the job of a worker; nothing if it exists."""
        if name in self.workers:
            return
        draw = self._draw(1, name)
        simulation_model = self.simulation_model
        speed = math.exp(simulation_model.speed_spread * draw.standard_normal())
        worker = SimWorker(name, place, speed, Job(place, JobState.PENDING))
        self.workers[name] = worker
        wait = draw.exponential(simulation_model.wait_seconds) if simulation_model.wait_seconds else 0.0
        start = simulation_model.startup_seconds * math.exp(simulation_model.startup_spread * draw.standard_normal())
        self._set_job(worker, JobState.PENDING if wait else JobState.RUNNING)
        if wait:
            self.at(wait, lambda: self._set_job(worker, JobState.RUNNING))
        self.at(wait + start, lambda: self._get_ready(worker))

    def drain(self, name: str) -> None:
        """Let a worker end after the attempts that it has."""
        worker = self.workers.get(name)
        if worker is not None and not worker.draining:
            worker.draining = True
            self._touch_worker(worker)
            if worker.ready and not worker.held and not worker.inbox:
                self.at(0.0, lambda: self._leave(worker))

    def kill(self, name: str, reason: str = "") -> None:
        """End a worker; its attempts are lost with it."""
        worker = self.workers.get(name)
        if worker is None or worker.job.state is JobState.GONE:
            return
        lost, worker.inbox = [*worker.held, *worker.inbox], []
        for attempt in lost:
            self._release(worker, attempt)
            self._touch(attempt)
            self.ended(attempt)
        self._set_job(worker, JobState.GONE, reason)

    def _set_job(self, worker: SimWorker, state: JobState, reason: str = "") -> None:
        if worker.job.state is JobState.GONE and state is not JobState.GONE:
            return
        worker.job = Job(worker.place, state, reason=reason)
        self.jobs[worker.name] = worker.job
        self._touch_worker(worker)

    def _get_ready(self, worker: SimWorker) -> None:
        if worker.job.state is JobState.GONE:
            return
        worker.ready = True
        self._touch_worker(worker)
        self._fill(worker)

    def _leave(self, worker: SimWorker) -> None:
        if not worker.held and not worker.inbox and worker.job.state is not JobState.GONE:
            self._set_job(worker, JobState.GONE)

    def _fill(self, worker: SimWorker) -> None:
        while worker.ready and worker.inbox and len(worker.held) < self.slots:
            self._begin(worker, worker.inbox.pop(0))
        if worker.ready and worker.draining and not worker.held and not worker.inbox:
            self._leave(worker)

    # --- attempts ---------------------------------------------------------------------------------------------

    def assign(self, spec: TrialSpec) -> None:
        """Assign an attempt to its worker; if the worker is gone, the attempt is lost."""
        of_trial = self.attempts.setdefault(spec.trial, {})
        if spec.attempt in of_trial:
            return
        for earlier in of_trial.values():
            self._fence(earlier)
        attempt = self.attempt(spec)
        uniform = self._draw(2, spec.trial, spec.attempt).random(3)
        if uniform[0] < self.simulation_model.stragglers:
            attempt.slowness = self.simulation_model.straggler_factor
        if uniform[1] < self.simulation_model.crashes + self.simulation_model.preemptions:
            attempt.dies = attempt.progress + (self.table.milestones - attempt.progress) * float(uniform[2])
            attempt.preempted = uniform[1] >= self.simulation_model.crashes
        of_trial[spec.attempt] = attempt
        worker = self.workers[spec.worker]
        worker.assigned += 1
        self._touch_worker(worker)
        self._touch(attempt)
        if worker.job.state is not JobState.GONE:
            worker.inbox.append(attempt)
            self._fill(worker)

    def _fence(self, attempt: SimAttempt) -> None:
        """End an attempt that was taken for lost and still runs; nothing that it does counts any more."""
        if attempt.outcome is None:
            worker = self.workers[attempt.spec.worker]
            self._release(worker, attempt)
            worker.inbox = [other for other in worker.inbox if other is not attempt]
            self.drain(worker.name)

    def stop(self, trial: int, number: int, cause: StopCause, reason: str) -> None:
        """Ask an attempt to stop; the first cause stands."""
        attempt = self.attempts[trial][number]
        if attempt.stop is None:
            attempt.stop, attempt.stop_reason = cause, reason
            self._touch(attempt)
            self.at(self.simulation_model.stop_seconds, lambda: self._obey(attempt, cause, reason))

    def attempt(self, spec: TrialSpec) -> SimAttempt:
        """A new attempt that resumes from the checkpoint of its trial; it is not assigned yet."""
        seed = spec.config.get("seed")  # otherwise one of the table's, at random
        seed = int(self._draw(3, spec.trial).integers(2**31)) if seed is None else int(seed)
        return SimAttempt(spec, self.table.row(spec.config, seed), self._progress.get(spec.trial, 0.0))

    def adopt(self, attempt: SimAttempt) -> None:
        """Take over an attempt of an earlier process, which has ended or was lost with its worker."""
        trial, reports, name = attempt.spec.trial, attempt.reports, attempt.spec.worker
        if name not in self.workers:
            self.workers[name] = SimWorker(name, 0, 1.0, Job(0, JobState.GONE))
            self.jobs[name] = self.workers[name].job
        self.attempts.setdefault(trial, {})[attempt.spec.attempt] = attempt
        reached = float(reports[-1].milestone) if reports and attempt.spec.checkpoint_every else 0.0
        if attempt.outcome is not None and attempt.outcome.resumable:
            points = [0.0, *self._tokens[attempt.row]]
            reached = float(np.interp(attempt.outcome.tokens, points, np.arange(self.table.milestones + 1)))
        self._progress[trial] = max(reached, self._progress.get(trial, 0.0))
        self._touch(attempt)

    def forget(self, trial: int) -> None:
        """Keep little of a trial that the study was told the end of."""
        attempts = self.attempts.get(trial, {})
        if any(attempt.running for attempt in attempts.values()):
            return
        self._progress.pop(trial, None)
        if not self.keeps_ended:
            self.attempts.pop(trial, None)
            return
        for attempt in attempts.values():
            attempt.reports = PackedReports(attempt.reports)

    def _begin(self, worker: SimWorker, attempt: SimAttempt) -> None:
        if attempt.outcome is not None:
            return
        worker.held.append(attempt)
        attempt.running = True
        attempt.lap = self.now
        if attempt.stop is not None:
            self._obey(attempt, attempt.stop, attempt.stop_reason)
            return
        self._next_milestone(worker, attempt)

    def _next_milestone(self, worker: SimWorker, attempt: SimAttempt) -> None:
        """Schedule the next milestone at the worker's current pace, or the worker's end if that comes first."""
        done = math.floor(attempt.progress + 1e-9)
        model = self.simulation_model
        shared = 1 + model.slot_cost * (len(worker.held) - 1)
        whole = model.trial_seconds * self._share[attempt.row][done] * attempt.slowness * shared / worker.speed
        attempt.lap, attempt.pace = self.now, whole
        attempt.turn += 1
        turn, dies = attempt.turn, attempt.dies
        if dies < done + 1:
            self.at(max(0.0, dies - attempt.progress) * whole, lambda: self._end_worker(worker, attempt, turn))
        else:
            self.at((done + 1 - attempt.progress) * whole, lambda: self._report(worker, attempt, turn))

    def _end_worker(self, worker: SimWorker, attempt: SimAttempt, turn: int) -> None:
        if not attempt.running or attempt.turn != turn:
            return
        if not attempt.preempted:
            self.kill(worker.name, "it crashed")
            return
        reason = "its worker ends: it was preempted"
        others, worker.inbox = [*worker.held, *worker.inbox], []
        for other in others:
            self._finish(worker, other, OutcomeKind.STOPPED, reason, StopCause.PREEMPTED)
        self._set_job(worker, JobState.GONE, "preempted")

    def _report(self, worker: SimWorker, attempt: SimAttempt, turn: int) -> None:
        if not attempt.running or attempt.turn != turn:
            return
        before = attempt.lap
        attempt.progress = math.floor(attempt.progress + 1e-9) + 1
        attempt.seconds += self.now - before
        milestone = int(attempt.progress)
        report = self._reported(attempt, milestone)
        assert isinstance(attempt.reports, list), "the trial has ended"
        attempt.reports.append(report)
        every = attempt.spec.checkpoint_every
        if every and milestone % every == 0:
            self._progress[attempt.spec.trial] = attempt.progress
        if report.final:
            self._finish(worker, attempt, OutcomeKind.COMPLETED)
            self._fill(worker)
            return
        if milestone == self.table.ends.get(attempt.row):
            self._finish(worker, attempt, OutcomeKind.STOPPED, RECORD_ENDS, StopCause.PRUNED)
            self._fill(worker)
            return
        self._touch(attempt)
        self._next_milestone(worker, attempt)

    def _reported(self, attempt: SimAttempt, milestone: int) -> Report:
        row, curves, at = attempt.row, self._curves, milestone - 1
        tokens = curves["tokens"][row]
        steps = curves.get("optimizer_steps")
        return Report(
            milestone=milestone,
            step=int(steps[row][at]) if steps is not None else milestone,
            tokens=int(tokens[at]),
            epoch=0,
            loss=curves["train_loss"][row][at],
            grad_norm=curves["grad_norm"][row][at],
            lr=0.0,
            tokens_per_second=(int(tokens[at]) - (int(tokens[at - 1]) if at else 0)) / max(attempt.pace, 1e-9),
            seconds=attempt.seconds,
            val_loss=curves["val_loss"][row][at] if self.table.has_validation else None,
            final=milestone == self.table.milestones,
        )

    def _obey(self, attempt: SimAttempt, cause: StopCause, reason: str) -> None:
        worker = self.workers[attempt.spec.worker]
        if attempt.running:
            self._finish(worker, attempt, OutcomeKind.STOPPED, reason, cause)
            self._fill(worker)

    def _finish(
        self,
        worker: SimWorker,
        attempt: SimAttempt,
        kind: OutcomeKind,
        reason: str = "",
        cause: StopCause | None = None,
    ) -> None:
        reached = self._reached(attempt)
        self._release(worker, attempt)
        if cause is not None and cause.resumable and attempt.spec.checkpoint_every > 0:
            self._progress[attempt.spec.trial] = reached
        tokens = np.interp(reached, np.arange(self.table.milestones + 1), [0.0, *self._tokens[attempt.row]])
        attempt.outcome = Outcome(kind, reason, cause, tokens=int(tokens), seconds=attempt.seconds)
        self._touch(attempt)
        self.ended(attempt)

    def _reached(self, attempt: SimAttempt) -> float:
        """The progress of an attempt at this moment."""
        if not attempt.running or not attempt.pace or attempt.progress >= self.table.milestones:
            return attempt.progress
        limit = math.floor(attempt.progress + 1e-9) + 1 - 1e-6
        return min(limit, attempt.progress + (self.now - attempt.lap) / attempt.pace)

    def _release(self, worker: SimWorker, attempt: SimAttempt) -> None:
        """Take an attempt out of its worker, and count the seconds that it has trained."""
        if attempt.running and attempt.progress < self.table.milestones:
            attempt.seconds += self.now - attempt.lap
        attempt.running = False
        if attempt in worker.held:
            worker.held.remove(attempt)

    # --- what is observed -------------------------------------------------------------------------------------

    def watch(self) -> Watch:
        """A record of what changes from now on, for one observer."""
        self._watches.append(Watch())
        return self._watches[-1]

    def _touch(self, attempt: SimAttempt) -> None:
        self._happened += 1
        for watch in self._watches:
            watch.trials.add(attempt.spec.trial)

    def _touch_worker(self, worker: SimWorker) -> None:
        self._happened += 1
        for watch in self._watches:
            watch.workers.add(worker.name)

    def _draw(self, kind: int, *key: int | str) -> np.random.Generator:
        numbers = [int.from_bytes(str(part).encode(), "little") if isinstance(part, str) else part for part in key]
        return np.random.default_rng([self.seed, kind, *numbers])
