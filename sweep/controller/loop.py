"""Observe, decide, act: the controller of one sweep.

Invariants: exactly one controller holds a room's lock. It keeps nothing that it cannot observe again, except
since when it has seen something, so that its death at any moment costs nothing but time. Every effect is carried
out by one call of a port, and each of those is safe to repeat.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sweep.controller.budget import trials_left
from sweep.controller.decide import decide
from sweep.controller.ports import ObservedAttempt, ObservedWorker, Ports, WorkerSpec
from sweep.controller.report_buffer import ReportBuffer
from sweep.controller.usage import Usage
from sweep.errors import RetryLater
from sweep.model import (
    Ask,
    AskFinal,
    Assign,
    AttemptFacts,
    Cancel,
    Drain,
    Effect,
    Finish,
    Job,
    JobState,
    Limits,
    Mode,
    Send,
    StartWorkers,
    Stop,
    Tell,
    TrialFacts,
    Verdict,
    View,
    WorkerFacts,
)
from trainer.contract import OutcomeKind, Report, StopCause, TrialSpec
from trainer.room import worker_number

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion

# What a shared file system or the network may say for a moment, and take back.
PASSING = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO}

# Effects that call for nothing more in the same moment: only time shows what comes of them.
UNANSWERED = (Assign, Cancel, Drain, Stop)

# Builds the specification of an attempt from trial, attempt and worker.
SpecFactory = Callable[[int, int, str], TrialSpec]


class Ledger(Protocol):
    """Keeps what was decided about trials and what each decision was based on."""

    def ruled(self, trial: int, verdict: Verdict, tokens: int) -> None:
        """A verdict was given on a trial that has trained so many label tokens; nothing where that is known."""

    def promoted(self, promotion: Promotion) -> None:
        """A pause was lifted."""


class NoLedger:
    """Keeps nothing."""

    def ruled(self, trial: int, verdict: Verdict, tokens: int) -> None:
        pass

    def promoted(self, promotion: Promotion) -> None:
        pass


class Listener(Protocol):
    """Told what the controller sees and does; must not act on the sweep."""

    def reported(self, trial: int, report: Report) -> None:
        """A trial reached a milestone."""

    def done(self, effect: Effect) -> None:
        """An effect was carried out."""

    def waited(self, view: View) -> None:
        """Nothing was left to do for the moment."""

    def promoted(self, promotion: Promotion) -> None:
        """A paused trial goes on."""

    def trouble(self, message: str) -> None:
        """Something did not work and will be tried again."""


@dataclass
class Controller:
    """The controller of one sweep.

    Args:
        mode: what the person wants now; asked before each decision.
        spec: builds specifications.
        created: when the sweep began, on the controller's clock.
    """

    ports: Ports
    limits: Limits
    spec: SpecFactory
    listener: Listener
    mode: Callable[[], Mode]
    created: float
    poll_seconds: float = 0.1
    ledger: Ledger = field(default_factory=NoLedger)
    _since: dict[tuple[str, object], tuple[object, float]] = field(default_factory=dict)
    _jobs: Mapping[str, Job] = field(default_factory=dict)
    _usage: Usage = field(default_factory=Usage)
    _known_stops: set[tuple[int, int]] = field(default_factory=set)
    _ruled: dict[int, Verdict] = field(default_factory=dict)
    _reports: ReportBuffer = field(init=False)
    _recalled: bool = False
    _asks_on: bool = True
    _trials: dict[int, tuple[list[ObservedAttempt], TrialFacts]] = field(default_factory=dict)
    _workers: dict[str, tuple[ObservedWorker, Job, WorkerFacts]] = field(default_factory=dict)
    _first_name: int | None = None
    _last_name: int = 0

    def __post_init__(self) -> None:
        self._reports = ReportBuffer(self.ports.channel)

    def run(self) -> Finish:
        """Go on until there is nothing left to do, or the person wants it to end."""
        while True:
            effects = self.round()
            if effects and isinstance(effects[-1], Finish):
                return effects[-1]
            if idle(effects):
                self.ports.channel.wait(self.ports.clock, self.poll_seconds)

    def round(self) -> tuple[Effect, ...]:
        """One step; what cannot be answered for the moment is told, and nothing is done."""
        try:
            return self.step()
        except (RetryLater, OSError) as error:
            if isinstance(error, OSError) and error.errno not in PASSING:
                raise
            self.listener.trouble(str(error))
            return ()

    def step(self) -> tuple[Effect, ...]:
        """One round; returns the effects that were carried out.

        Raises:
            RetryLater: a port cannot answer now; the next round observes anew.
        """
        view = self.observe()
        effects = decide(view, self.limits, self.ports.clock.now())
        for effect in effects:
            if self._act(effect):
                self.listener.done(effect)
        if not effects:
            self.listener.waited(view)
        return effects

    def observe(self) -> View:
        """All facts of this moment; takes new reports to the study on the way."""
        study = self.ports.study
        self._recall()
        known = study.facts()
        self._asks_on = trials_left(known, self.limits) > 0
        # jobs first: an attempt whose job is gone by now has written all that it ever will
        jobs = self.ports.dispatcher.poll()
        self._jobs = jobs
        self._last_name = max([self._last_name, *map(worker_number, jobs)])
        self._first_name = self._last_name if self._first_name is None else self._first_name
        watched = [name for name, job in jobs.items() if job.state is not JobState.GONE or self._is_ours(name)]
        attempts, workers = self._reports.look(known.open, watched)
        trials = tuple(self._reports.take(attempts, self._known_trial))
        facts = tuple([self._known_worker(sight, jobs[name]) for name, sight in workers.items()])
        failed = self._failed_starts(facts)
        return View(
            study=study.facts(),
            trials=trials,
            workers=facts,
            mode=self.mode(),
            tokens=study.facts().tokens + self._usage.tokens,
            seconds=self.ports.clock.now() - self.created,
            trained=study.facts().seconds + self._usage.seconds,
            start_failures=len(failed),
            start_failure=failed[0].reason if failed else "",
        )

    def _act(self, effect: Effect) -> bool:
        """Carry an effect out; False where there was nothing to do after all."""
        ports = self.ports
        match effect:
            case StartWorkers(places):
                names = [f"w{self._last_name + 1 + index:04d}" for index in range(len(places))]
                ports.dispatcher.start([WorkerSpec(n, place) for n, place in zip(names, places, strict=True)])
            case Ask(new, worker):
                return self._ask(new, worker)
            case AskFinal():
                assert ports.finals is not None, "the study announces finals, so it implements FinalsStudy"
                ports.finals.ask_final()
            case Assign(trial, attempt, worker):
                ports.channel.assign(self.spec(trial, attempt, worker))
            case Send(worker):
                ports.dispatcher.start([WorkerSpec(worker, self._jobs[worker].place)])
            case Stop(trial, attempt, cause, reason):
                self._known_stops.add((trial, attempt))
                ports.channel.stop(trial, attempt, cause, reason)
            case Cancel(worker):
                ports.dispatcher.cancel([worker])
            case Tell(trial):
                self._ruled.pop(trial, None)
                self._trials.pop(trial, None)
                ports.study.tell(effect, *self._usage.take(trial))
            case Drain(worker):
                ports.channel.drain(worker)
            case Finish():
                pass
        return True

    def _recall(self) -> None:
        """Hand a study that judges trials by others what ended trials reported to an earlier controller."""
        pausing = self.ports.pausing
        if pausing is None or self._recalled:
            return

        def restore(number: int, sights: list[ObservedAttempt]) -> None:
            pausing.restore_reports(number, [report for sight in sights for report in sight.reports])

        attempts, _ = self._reports.look(pausing.trials_without_reports(), [])
        self._reports.take(attempts, restore)
        self._recalled = True

    def _ask(self, new: bool, worker: str) -> bool:
        """Promote a paused trial, or ask for a new one; False where there is none to promote, and none to ask for."""
        study, pausing = self.ports.study, self.ports.pausing
        promotion = pausing.promote(new, self._lasting(worker)) if pausing else None
        if promotion is not None:
            self._ruled.pop(promotion.trial, None)
            self._trials.pop(promotion.trial, None)
            self.ledger.promoted(promotion)
            self.listener.promoted(promotion)
            return True
        if new:
            study.ask()
        return new

    def _known_trial(self, number: int, sights: list[ObservedAttempt]) -> TrialFacts:
        """A trial's facts; those of the last time where the channel shows the very same object again."""
        known = self._trials.get(number)
        if known is not None and known[0] is sights:
            return known[1]
        facts = self._trial(number, sights)
        if not any(sight.reports for sight in sights):
            self._trials[number] = (sights, facts)
        return facts

    def _known_worker(self, sight: ObservedWorker, job: Job) -> WorkerFacts:
        """The same for a worker."""
        known = self._workers.get(sight.name)
        if known is None or known[0] is not sight or known[1] is not job:
            known = self._workers[sight.name] = (sight, job, self._worker(sight, job))
        return known[2]

    def _trial(self, number: int, sights: list[ObservedAttempt]) -> TrialFacts:
        told: Verdict | None = None
        ruled: Verdict | None = None
        for sight in sights:
            if sight.outcome is not None:
                self._usage.add_seconds(number, sight.number, sight.outcome.seconds)
            for report in sight.reports:
                self._usage.add_tokens(number, report.tokens)
                self._usage.add_seconds(number, sight.number, report.seconds)
                self.listener.reported(number, report)
            if sight.stop is StopCause.PRUNED:  # an earlier controller's verdict, which stands
                told = told or Verdict(0, float("nan"), sight.stop_reason)
            else:  # also while the trial is to pause: what an attempt reports before it hears of that counts
                ruled = self._record(number, sight, last=sight is sights[-1])
        verdict = told or ruled
        if verdict is not None and self._ruled.get(number) is not verdict:
            if verdict.milestone:
                self.ledger.ruled(number, verdict, self._usage.tokens_of(number))
            self._ruled[number] = verdict
        facts = TrialFacts(number, tuple(self._attempt(number, sight) for sight in sights), verdict)
        if facts.paused and sights and sights[-1].outcome is not None:
            self._suspend(facts)
        return facts

    def _record(self, number: int, sight: ObservedAttempt, last: bool) -> Verdict | None:
        study, pausing = self.ports.study, self.ports.pausing
        if (
            pausing and sight.stop is StopCause.PAUSED and last and (number, sight.number) not in self._known_stops
        ):  # an earlier controller's
            self._known_stops.add((number, sight.number))
            pausing.restore_pause(number, sight.stop_reason)
        return study.record(number, sight.reports, self._lasting(sight.worker), self._asks_on)

    def _lasting(self, worker: str) -> str:
        """A worker that goes on to other trials; empty for one that does not: how fast it is helps no other trial."""
        return worker if self.limits.trials_per_worker is None else ""

    def _suspend(self, trial: TrialFacts) -> None:
        pausing, outcome = self.ports.pausing, trial.attempts[-1].outcome
        if pausing and outcome is not None and (outcome.resumable or outcome.kind is OutcomeKind.COMPLETED):
            pausing.suspend(trial.number)

    def _attempt(self, trial: int, sight: ObservedAttempt) -> AttemptFacts:
        stop_since = self._seen(("stop", (trial, sight.number)), sight.stop) if sight.stop else None
        return AttemptFacts(
            sight.number, sight.worker, sight.delivered, sight.begun, sight.stop, stop_since, sight.outcome
        )

    def _worker(self, sight: ObservedWorker, job: Job) -> WorkerFacts:
        return WorkerFacts(
            name=sight.name,
            place=job.place,
            job=job.state,
            ready=sight.beat is not None,
            started=self._seen(("job", sight.name), job.state),
            beat=self._seen(("beat", sight.name), sight.beat),
            assigned=sight.assigned,
            draining=sight.draining,
            slots=sight.slots,
            handle=job.handle,
            node=job.node,
            reason=job.reason,
        )

    def _seen(self, what: tuple[str, object], value: object) -> float:
        """Since when this has had this value, on our clock."""
        if what not in self._since or self._since[what][0] != value:
            self._since[what] = (value, self.ports.clock.now())
        return self._since[what][1]

    def _is_ours(self, name: str) -> bool:
        """One of the last workers that this controller started."""
        recent = self._last_name - self.limits.max_start_failures - self.limits.workers
        return worker_number(name) > max(self._first_name or 0, recent)

    def _failed_starts(self, workers: tuple[WorkerFacts, ...]) -> list[WorkerFacts]:
        """The last workers in a row that ended without ever being ready, newest first; those we let go left out."""
        failed: list[WorkerFacts] = []
        if not any(worker.job is JobState.GONE and not worker.ready for worker in workers):
            return failed
        for worker in sorted(workers, key=lambda w: w.name, reverse=True):
            if worker.ready:
                break
            if worker.job is JobState.GONE and not worker.draining:
                failed.append(worker)
        return failed


def idle(effects: tuple[Effect, ...]) -> bool:
    """Whether nothing was done that calls for another look at once."""
    return all(isinstance(effect, (*UNANSWERED, Finish)) for effect in effects)
