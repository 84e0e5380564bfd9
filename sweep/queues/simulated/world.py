"""Simulated workers that replay recorded curves in discrete-event time.

`state` holds workers and attempts, `draws` what chance does to them, `events` the clock and what is scheduled on it,
`curves` the table as an attempt reads it, and `changes` what an observer has not seen yet. A world puts these together.

Invariants: `ended` is the only effect outside of the world, and no real time passes. What happens to an attempt
depends on the world's seed, the trial and the attempt; what happens to a worker depends on the seed and its name.
Neither depends on the order of what a controller does. A lost worker writes nothing more; its trials resume from their
last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from sweep.model.facts import Job
from sweep.model.states import JobState
from sweep.queues.simulated.changes import Changes
from sweep.queues.simulated.curves import Curves
from sweep.queues.simulated.draws import draw_attempt, draw_seed, draw_worker
from sweep.queues.simulated.events import (
    AttemptStops,
    Event,
    JobStarts,
    MilestoneEnds,
    Timeline,
    WorkerEnds,
    WorkerGetsReady,
    WorkerLeaves,
)
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.state import SimulatedAttempt, SimulatedWorker
from sweep.queues.simulated.tables import Table
from sweep.search.strategy.packed_reports import PackedReports
from trainer.contract import Outcome, OutcomeKind, StopCause, TrialSpec

# The reason of an attempt that ends because its row has no further milestones.
RECORD_ENDS = "its record ends here"


class World:
    """Workers, attempts and the time.

    The configuration of a specification is flat: a value for each key of the table's grid, and perhaps a `seed`.
    `ended` is called with each attempt that gets an outcome or loses its worker. `recorded` returns the attempts of a
    trial that was forgotten. Unless it can, `keeps_ended` is True.

    Args:
        slots: attempts that one worker trains side by side.
        quota: attempts after which a worker ends; None: no limit.
    """

    def __init__(
        self,
        table: Table,
        simulation_model: SimulationModel,
        slots: int = 1,
        seed: int = 0,
        quota: int | None = None,
    ) -> None:
        self.table, self.simulation_model, self.slots, self.seed = table, simulation_model, slots, seed
        self.quota = quota
        self.workers: dict[str, SimulatedWorker] = {}
        self.attempts: dict[int, dict[int, SimulatedAttempt]] = {}
        self.jobs: dict[str, Job] = {}
        self.changes = Changes()
        self.ended: Callable[[SimulatedAttempt], None] = lambda attempt: None
        self.recorded: Callable[[int], dict[int, SimulatedAttempt]] = lambda trial: {}
        self.keeps_ended = True
        self._timeline = Timeline()
        self._curves = Curves(table)
        self._checkpoints: dict[int, float] = {}  # by trial, the progress from which its next attempt resumes

    # --- time -------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds on the world's clock."""
        return self._timeline.now

    def next_event(self) -> float:
        """The time of the next event; infinity if there is none."""
        return self._timeline.next_time

    def advance(self, until: float) -> None:
        """Let all events up to this time happen, and set the clock to it."""
        while (event := self._timeline.pop(until)) is not None:
            self._happen(event)

    def _happen(self, event: Event) -> None:
        match event:
            case JobStarts(worker):
                self._set_job(worker, JobState.RUNNING)
            case WorkerGetsReady(worker):
                self._get_ready(worker)
            case WorkerLeaves(worker):
                if worker.idle and not worker.gone:
                    self._set_job(worker, JobState.GONE)
            case AttemptStops(attempt, cause, reason):
                self._obey(attempt, cause, reason)
            case MilestoneEnds(attempt, turn):
                if attempt.is_training(turn):
                    self._report(attempt)
            case WorkerEnds(attempt, turn):
                if attempt.is_training(turn):
                    self._end_worker(attempt)

    # --- workers ----------------------------------------------------------------------------------------------

    def start(self, name: str, place: int) -> None:
        """Submit the job of a worker; nothing if it exists."""
        if name in self.workers:
            return
        draw = draw_worker(self.simulation_model, self.seed, name)
        worker = SimulatedWorker(name, place, draw.speed, Job(place, JobState.PENDING))
        self.workers[name] = worker
        self._set_job(worker, JobState.PENDING if draw.wait else JobState.RUNNING)
        if draw.wait:
            self._timeline.schedule(draw.wait, JobStarts(worker))
        self._timeline.schedule(draw.wait + draw.startup, WorkerGetsReady(worker))

    def drain(self, name: str) -> None:
        """Let a worker end after the attempts that it has."""
        worker = self.workers.get(name)
        if worker is not None and not worker.draining:
            worker.draining = True
            self.changes.worker(worker.name)
            if worker.ready and worker.idle:
                self._timeline.schedule(0.0, WorkerLeaves(worker))

    def kill(self, name: str, reason: str = "") -> None:
        """End a worker; its attempts are lost with it."""
        worker = self.workers.get(name)
        if worker is None or worker.gone:
            return
        for attempt in worker.take_all():
            worker.release(attempt, self.now, self.table.milestones)
            self.changes.trial(attempt.spec.trial)
            self.ended(attempt)
        self._set_job(worker, JobState.GONE, reason)

    def _set_job(self, worker: SimulatedWorker, state: JobState, reason: str = "") -> None:
        if worker.gone and state is not JobState.GONE:
            return
        worker.job = Job(worker.place, state, reason=reason)
        self.jobs[worker.name] = worker.job
        self.changes.worker(worker.name)

    def _get_ready(self, worker: SimulatedWorker) -> None:
        if not worker.gone:
            worker.ready = True
            self.changes.worker(worker.name)
            self._fill(worker)

    def _fill(self, worker: SimulatedWorker) -> None:
        """Let a worker begin as many of its attempts as it has free slots; one that takes no more and has none ends."""
        while worker.ready and worker.inbox and len(worker.held) < self.slots:
            self._begin(worker, worker.inbox.pop(0))
        full = self.quota is not None and worker.assigned >= self.quota
        if worker.ready and (worker.draining or full) and worker.idle and not worker.gone:
            self._set_job(worker, JobState.GONE)

    # --- attempts ---------------------------------------------------------------------------------------------

    def assign(self, spec: TrialSpec) -> None:
        """Assign an attempt to its worker; if the worker is gone, the attempt is lost."""
        of_trial = self.attempts.setdefault(spec.trial, {})
        if spec.attempt in of_trial:
            return
        for earlier in of_trial.values():
            self._fence(earlier)
        attempt, worker = self.attempt(spec), self.workers[spec.worker]
        draw = draw_attempt(self.simulation_model, self.seed, spec.trial, spec.attempt)
        attempt.slowness, attempt.preempted = draw.slowness, draw.preempted
        attempt.dies = draw.dies(attempt.progress, self.table.milestones)
        of_trial[spec.attempt] = attempt
        worker.assigned += 1
        self.changes.worker(worker.name)
        self.changes.trial(attempt.spec.trial)
        if not worker.gone:
            worker.inbox.append(attempt)
            self._fill(worker)

    def stop(self, trial: int, number: int, cause: StopCause, reason: str) -> None:
        """Ask an attempt to stop; the first cause stands."""
        attempt = self.attempts[trial][number]
        if attempt.stop is None:
            attempt.stop, attempt.stop_reason = cause, reason
            self.changes.trial(attempt.spec.trial)
            self._timeline.schedule(self.simulation_model.stop_seconds, AttemptStops(attempt, cause, reason))

    def attempt(self, spec: TrialSpec) -> SimulatedAttempt:
        """A new attempt that resumes from the checkpoint of its trial; it is not assigned yet."""
        seed = spec.config.get("seed")  # otherwise one of the table's, at random
        seed = draw_seed(self.seed, spec.trial) if seed is None else int(seed)
        return SimulatedAttempt(spec, self.table.row(spec.config, seed), self._checkpoints.get(spec.trial, 0.0))

    def adopt(self, attempt: SimulatedAttempt) -> None:
        """Take over an attempt of an earlier process, which has ended or was lost with its worker."""
        trial, reports, name = attempt.spec.trial, attempt.reports, attempt.spec.worker
        if name not in self.workers:
            self.workers[name] = SimulatedWorker(name, 0, 1.0, Job(0, JobState.GONE))
            self.jobs[name] = self.workers[name].job
        self.attempts.setdefault(trial, {})[attempt.spec.attempt] = attempt
        reached = float(reports[-1].milestone) if reports and attempt.spec.checkpoint_every else 0.0
        if attempt.outcome is not None and attempt.outcome.resumable:
            reached = self._curves.progress(attempt.row, attempt.outcome.tokens)
        self._checkpoints[trial] = max(reached, self._checkpoints.get(trial, 0.0))
        self.changes.trial(attempt.spec.trial)

    def forget(self, trial: int) -> None:
        """Keep little of a trial that the study was told the end of."""
        attempts = self.attempts.get(trial, {})
        if any(attempt.running for attempt in attempts.values()):
            return
        self._checkpoints.pop(trial, None)
        if not self.keeps_ended:
            self.attempts.pop(trial, None)
            return
        for attempt in attempts.values():
            attempt.reports = PackedReports(attempt.reports)

    def _fence(self, attempt: SimulatedAttempt) -> None:
        """End an attempt that was taken for lost and still runs; nothing that it does counts any more."""
        if attempt.outcome is None:
            worker = self.workers[attempt.spec.worker]
            worker.release(attempt, self.now, self.table.milestones)
            worker.inbox = [other for other in worker.inbox if other is not attempt]
            self.drain(worker.name)

    def _begin(self, worker: SimulatedWorker, attempt: SimulatedAttempt) -> None:
        if attempt.outcome is not None:
            return
        worker.held.append(attempt)
        attempt.running, attempt.lap = True, self.now
        if attempt.stop is not None:
            self._obey(attempt, attempt.stop, attempt.stop_reason)
        else:
            self._next_milestone(worker, attempt)

    def _next_milestone(self, worker: SimulatedWorker, attempt: SimulatedAttempt) -> None:
        """Schedule the next milestone at the worker's current pace, or the worker's end if that comes first."""
        milestone, model = attempt.milestone, self.simulation_model
        shared = 1 + model.slot_cost * (len(worker.held) - 1)
        share = self._curves.share(attempt.row, milestone)
        pace = model.trial_seconds * share * attempt.slowness * shared / worker.speed
        attempt.begin_milestone(self.now, pace)
        if attempt.dies < milestone + 1:
            left, event = max(0.0, attempt.dies - attempt.progress), WorkerEnds(attempt, attempt.turn)
            self._timeline.schedule(left * pace, event)
        else:
            left = milestone + 1 - attempt.progress
            self._timeline.schedule(left * pace, MilestoneEnds(attempt, attempt.turn))

    def _report(self, attempt: SimulatedAttempt) -> None:
        worker = self.workers[attempt.spec.worker]
        attempt.end_milestone(self.now)
        report = self._curves.report(attempt)
        assert isinstance(attempt.reports, list), "the trial has ended"
        attempt.reports.append(report)
        if attempt.saves(report.milestone):
            self._checkpoints[attempt.spec.trial] = attempt.progress
        if report.final:
            self._finish(worker, attempt, OutcomeKind.COMPLETED)
            self._fill(worker)
        elif report.milestone == self.table.ends.get(attempt.row):
            self._finish(worker, attempt, OutcomeKind.STOPPED, RECORD_ENDS, StopCause.PRUNED)
            self._fill(worker)
        else:
            self.changes.trial(attempt.spec.trial)
            self._next_milestone(worker, attempt)

    def _end_worker(self, attempt: SimulatedAttempt) -> None:
        worker = self.workers[attempt.spec.worker]
        if not attempt.preempted:
            self.kill(worker.name, "it crashed")
            return
        for other in worker.take_all():
            reason = "its worker ends: it was preempted"
            self._finish(worker, other, OutcomeKind.STOPPED, reason, StopCause.PREEMPTED)
        self._set_job(worker, JobState.GONE, "preempted")

    def _obey(self, attempt: SimulatedAttempt, cause: StopCause, reason: str) -> None:
        worker = self.workers[attempt.spec.worker]
        if attempt.running:
            self._finish(worker, attempt, OutcomeKind.STOPPED, reason, cause)
            self._fill(worker)

    def _finish(
        self,
        worker: SimulatedWorker,
        attempt: SimulatedAttempt,
        kind: OutcomeKind,
        reason: str = "",
        cause: StopCause | None = None,
    ) -> None:
        reached = attempt.reached(self.now, self.table.milestones)
        worker.release(attempt, self.now, self.table.milestones)
        if cause is not None and cause.resumable and attempt.spec.checkpoint_every > 0:
            self._checkpoints[attempt.spec.trial] = reached
        tokens = self._curves.tokens(attempt.row, reached)
        attempt.outcome = Outcome(kind, reason, cause, tokens=tokens, seconds=attempt.seconds)
        self.changes.trial(attempt.spec.trial)
        self.ended(attempt)
