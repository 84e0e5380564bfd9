"""How open trials end: what the study is told of those that have no running attempt.

Invariants: a pure function of facts, limits and the time. A trial is told only when no attempt of it can be running,
and it is told PRUNED only after its attempt has stopped. A paused trial is told only when it can no longer be promoted.
A trial is told COMPLETE only when the study has its final report. A report may arrive later than the outcome, so it is
awaited for a while; then the attempt counts as lost.
"""

from __future__ import annotations

import math
from functools import cached_property

from sweep.controller.situation import Situation
from sweep.model.effects import Tell
from sweep.model.facts import TrialFacts
from sweep.model.states import Ending, Mode
from trainer.contract import FailureKind, Outcome, OutcomeKind, StopCause

# Failures before the first step that another attempt would repeat.
UNBUILDABLE = (FailureKind.BAD_CONFIG, FailureKind.MISSING_FILE)


class Endings:
    """Which open trials have ended, and which wait for a worker."""

    def __init__(self, situation: Situation, now: float) -> None:
        self._situation, self._now = situation, now
        self._view, self._limits = situation.view, situation.limits

    @cached_property
    def tells(self) -> list[Tell]:
        """What to tell the study of the trials that have ended."""
        tells = [tell for tell in self._by_trial.values() if tell]
        if self._situation.paused_are_final:
            # a trial that was suspended in this very observation is among both
            tells += [
                self._not_promoted(number) for number in self._view.study.suspended if not self._by_trial.get(number)
            ]
        return tells

    @cached_property
    def waiting(self) -> list[TrialFacts]:
        """Open trials that need a worker, lowest number first."""
        return [trial for trial in self._open if not trial.paused and not self._awaits_final_report(trial)]

    @cached_property
    def awaited(self) -> list[TrialFacts]:
        """Open trials that have completed, and whose final report may still arrive."""
        return [trial for trial in self._open if self._awaits_final_report(trial)]

    @cached_property
    def _open(self) -> list[TrialFacts]:
        """Trials without a running attempt that have not ended."""
        return [trial for trial in self._situation.occupancy.idle_trials if self._by_trial[trial.number] is None]

    @cached_property
    def _by_trial(self) -> dict[int, Tell | None]:
        return {trial.number: self._ending(trial) for trial in self._situation.occupancy.idle_trials}

    def _ending(self, trial: TrialFacts) -> Tell | None:
        """How a trial without a running attempt ends; None if it stays open."""
        outcome = trial.attempts[-1].outcome if trial.attempts else None
        if not trial.attempts:
            return self._cancelled(trial)
        if trial.paused and not _allows_no_attempt(outcome):
            return self._not_promoted(trial.number) if self._situation.paused_are_final else None
        pruned = trial.verdict.reason if trial.verdict and not trial.paused else None
        if outcome is None:
            return self._after_failure(trial, pruned)
        match outcome.kind:
            case OutcomeKind.COMPLETED if pruned is None and trial.objective is None:
                return None if self._awaits_final_report(trial) else self._after_failure(trial, pruned)
            case OutcomeKind.COMPLETED if pruned is None and not math.isfinite(trial.objective or 0.0):
                return Tell(trial.number, Ending.FAIL, "its final report has no finite number of the objective")
            case OutcomeKind.COMPLETED if pruned is None:
                return Tell(trial.number, Ending.COMPLETE, outcome.reason)
            case OutcomeKind.DIVERGED:
                return Tell(trial.number, Ending.PRUNED, f"diverged: {outcome.reason}")
            case OutcomeKind.FAILED if outcome.resumable:
                return self._after_failure(trial, pruned)
            case OutcomeKind.FAILED:
                unbuildable = outcome.failure in UNBUILDABLE and not outcome.step
                return Tell(trial.number, Ending.FAIL, outcome.reason, unbuildable=unbuildable)
            case OutcomeKind.STOPPED if outcome.cause is StopCause.CANCELLED:
                return Tell(trial.number, Ending.FAIL, outcome.reason, cancelled=True)
            case OutcomeKind.STOPPED if pruned is None and outcome.resumable:
                return self._cancelled(trial)
        return Tell(trial.number, Ending.PRUNED, pruned or outcome.reason)

    def _not_promoted(self, number: int) -> Tell:
        """How a paused trial ends that can no longer be promoted."""
        study = self._view.study
        if number in study.trained and not study.complete:  # else how a trial ends depends on how fast a stop is
            return Tell(number, Ending.COMPLETE, "it had trained to its end before its pause reached it")
        return Tell(number, Ending.PRUNED, "it was paused, and not promoted before the end")

    def _awaits_final_report(self, trial: TrialFacts) -> bool:
        """Whether a trial without a running attempt has completed so lately that its final report may still arrive."""
        last = trial.attempts[-1] if trial.attempts else None
        if last is None or last.outcome is None or last.outcome.kind is not OutcomeKind.COMPLETED:
            return False
        lately = last.outcome_since is not None and self._now - last.outcome_since <= self._limits.silence
        return lately and trial.objective is None and not trial.verdict and self._view.mode is Mode.RUN

    def _after_failure(self, trial: TrialFacts, pruned: str | None) -> Tell | None:
        """How a trial ends whose last attempt was lost or failed; None if it may be tried again.

        An attempt that found no space left does not count: no trial is to blame for that.
        """
        if pruned is not None:
            return Tell(trial.number, Ending.PRUNED, pruned)
        outcomes = [attempt.outcome for attempt in trial.attempts if attempt.outcome]
        failed = [
            outcome.reason
            for outcome in outcomes
            if outcome.kind is OutcomeKind.FAILED and outcome.failure is not FailureKind.NO_SPACE
        ]
        lost = sum(1 for attempt in trial.attempts if attempt.outcome is None and attempt.begun)
        cut = sum(1 for outcome in outcomes if outcome.kind is OutcomeKind.COMPLETED)
        if lost + cut + len(failed) >= self._limits.max_attempts:
            parts = [f"its worker was lost {lost} times"] if lost else []
            parts += [f"its final report was lost {cut} times"] if cut else []
            parts += [f"it failed {len(failed)} times, last by {failed[-1]}"] if failed else []
            reason = f"{' and '.join(parts)} (search.max_attempts={self._limits.max_attempts})"
            return Tell(trial.number, Ending.FAIL, reason)
        return self._cancelled(trial)

    def _cancelled(self, trial: TrialFacts) -> Tell | None:
        """How a trial ends that could be resumed; None unless the whole search ends for good."""
        if self._view.mode is Mode.CANCEL or self._situation.target_ends_search:
            return Tell(trial.number, Ending.FAIL, "the sweep ended before it could go on", cancelled=True)
        return None


def _allows_no_attempt(outcome: Outcome | None) -> bool:
    """Whether no further attempt can follow this outcome, even if the study promotes the trial."""
    match outcome:
        case Outcome(kind=OutcomeKind.DIVERGED) | Outcome(kind=OutcomeKind.STOPPED, cause=StopCause.CANCELLED):
            return True
        case Outcome(kind=OutcomeKind.FAILED):
            return not outcome.resumable
    return False
