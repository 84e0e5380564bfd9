"""Turns what the channel shows of a trial into the trial's facts, and hands its new reports to the study.

Everything kept here is a cache: a channel shows all reports again to a new controller, and the ledger does not write
a decision twice, so a new `TrialObserver` arrives at the same facts.

Invariants: reports reach the study in the order in which the channel shows them. A verdict is in the ledger before
the controller acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sweep.controller.first_seen import FirstSeen
from sweep.controller.ports import Disk, Ledger, Listener, ObservedAttempt, PausingStudy, Study
from sweep.controller.usage import Usage
from sweep.model.facts import AttemptFacts, TrialFacts, Verdict
from sweep.model.limits import Limits
from trainer.contract import FailureKind, Outcome, OutcomeKind, StopCause


def reusable_worker(worker: str, limits: Limits) -> str:
    """The worker's name if it takes further trials, else an empty string: the speed of a worker that ends after this
    trial helps no other trial."""
    return worker if limits.trials_per_worker is None else ""


@dataclass
class TrialObserver:
    """Observes the trials of one sweep.

    Args:
        pausing: the study, if it can pause trials.
        new_trials_allowed: whether trial number and sampler permit a new trial; updated in each round.
        usage: of the open trials, added up from their reports.
        _facts: by trial the attempts as the channel showed them, and the facts made of them. They are used again as
            long as the channel shows the very same list.
        _verdicts: by trial the last verdict that was passed to the ledger.
        _without_space: attempts that found no space left, of which the disk was told.
        _handled_stops: attempts whose pause this controller decided itself, or has restored already.
        _last_attempts: by open trial the number of its last attempt.
    """

    study: Study
    pausing: PausingStudy | None
    listener: Listener
    ledger: Ledger
    limits: Limits
    first_seen: FirstSeen
    disk: Disk | None = None
    new_trials_allowed: bool = True
    usage: Usage = field(default_factory=Usage)
    _facts: dict[int, tuple[list[ObservedAttempt], TrialFacts]] = field(default_factory=dict)
    _verdicts: dict[int, Verdict] = field(default_factory=dict)
    _without_space: set[tuple[int, int]] = field(default_factory=set)
    _handled_stops: set[tuple[int, int]] = field(default_factory=set)
    _last_attempts: dict[int, int] = field(default_factory=dict)

    def facts(self, number: int, attempts: list[ObservedAttempt]) -> TrialFacts:
        """The facts of a trial from its attempts, oldest first; its new reports go to the study and the listener."""
        cached = self._facts.get(number)
        if cached is not None and cached[0] is attempts:
            return cached[1]
        facts = self._new_facts(number, attempts)
        if not any(attempt.reports for attempt in attempts):  # reports must not be handed to the study twice
            self._facts[number] = (attempts, facts)
        return facts

    def stop_sent(self, trial: int, attempt: int) -> None:
        """Note that this controller itself asks an attempt to stop."""
        self._handled_stops.add((trial, attempt))

    def forget(self, trial: int) -> None:
        """Drop the verdict and the facts of a trial that was promoted or has ended."""
        self._verdicts.pop(trial, None)
        self._facts.pop(trial, None)

    def forget_all(self) -> None:
        """Drop the facts of all trials, since the times in them begin anew. Verdicts stand."""
        self._facts.clear()

    def end(self, trial: int) -> None:
        """Drop everything of a trial that has ended."""
        self.forget(trial)
        for attempt in range(1, self._last_attempts.pop(trial, 0) + 1):
            self._handled_stops.discard((trial, attempt))
            for kind in ("stop", "outcome"):
                self.first_seen.forget(kind, (trial, attempt))

    # --- one trial --------------------------------------------------------------------------------------------------

    def _new_facts(self, number: int, attempts: list[ObservedAttempt]) -> TrialFacts:
        self._note_no_space(number, attempts)
        if attempts:
            self._last_attempts[number] = attempts[-1].number
        verdict = self._process(number, attempts)
        if verdict is not None:
            self._enter(number, verdict)
        attempt_facts = tuple(self._attempt_facts(number, attempt) for attempt in attempts)
        facts = TrialFacts(number, attempt_facts, verdict, self.study.objective(number))
        outcome = attempts[-1].outcome if attempts else None
        if self.pausing and facts.paused and outcome is not None and _can_be_promoted(outcome):
            self.pausing.suspend(number, trained=outcome.kind is OutcomeKind.COMPLETED)
        return facts

    def _note_no_space(self, number: int, attempts: Sequence[ObservedAttempt]) -> None:
        """Tell the disk if the last attempt found no space left, once."""
        last = attempts[-1].outcome if attempts else None
        if self.disk is None or last is None or last.failure is not FailureKind.NO_SPACE:
            return
        key = (number, attempts[-1].number)
        if key not in self._without_space:
            self._without_space.add(key)
            self.disk.failed(last.reason)

    def _process(self, number: int, attempts: Sequence[ObservedAttempt]) -> Verdict | None:
        """Count what is new and have the study judge it; returns the verdict that stands."""
        earlier: Verdict | None = None
        current: Verdict | None = None
        for attempt in attempts:
            self._count(number, attempt)
            if attempt.stop is StopCause.PRUNED:  # an earlier controller's verdict, which stands
                earlier = earlier or Verdict(0, float("nan"), attempt.stop_reason)
            else:  # reports that an attempt makes before it sees its pause count too
                current = self._judge(number, attempt, is_last=attempt is attempts[-1])
        return earlier or current

    def _count(self, number: int, attempt: ObservedAttempt) -> None:
        """Add what an attempt has used, and pass its new reports to the listener."""
        if attempt.outcome is not None:
            self.usage.set_seconds(number, attempt.number, attempt.outcome.seconds)
        for report in attempt.reports:
            self.usage.set_tokens(number, report.tokens)
            self.usage.set_seconds(number, attempt.number, report.seconds)
            self.listener.reported(number, report)

    def _judge(self, number: int, attempt: ObservedAttempt, is_last: bool) -> Verdict | None:
        """The study's verdict after an attempt's new reports."""
        key = (number, attempt.number)
        if self.pausing and attempt.stop is StopCause.PAUSED and is_last and key not in self._handled_stops:
            self._handled_stops.add(key)
            self.pausing.restore_pause(number, attempt.stop_reason)
        worker = reusable_worker(attempt.worker, self.limits)
        return self.study.record(number, attempt.reports, worker, self.new_trials_allowed)

    def _enter(self, number: int, verdict: Verdict) -> None:
        """Enter a new verdict into the ledger; an earlier controller's is there already."""
        if self._verdicts.get(number) is not verdict:
            if verdict.milestone:
                self.ledger.add_verdict(number, verdict, self.usage.tokens_of(number))
            self._verdicts[number] = verdict

    def _attempt_facts(self, trial: int, attempt: ObservedAttempt) -> AttemptFacts:
        key = (trial, attempt.number)
        return AttemptFacts(
            number=attempt.number,
            worker=attempt.worker,
            delivered=attempt.delivered,
            begun=attempt.begun,
            stop=attempt.stop,
            stop_since=self.first_seen.since("stop", key, attempt.stop) if attempt.stop else None,
            outcome=attempt.outcome,
            outcome_since=self.first_seen.since("outcome", key, attempt.outcome.kind) if attempt.outcome else None,
        )


def _can_be_promoted(outcome: Outcome) -> bool:
    """Whether a paused trial whose last attempt ended so could continue, or is complete once promoted."""
    return outcome.resumable or outcome.kind is OutcomeKind.COMPLETED
