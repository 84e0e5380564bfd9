"""Judges the reports of trials, by a strategy of ours or by a pruner of Optuna.

Invariants: a strategy's verdict is a pure function of the curves. A verdict that stops a trial is stored at once: a
later controller may have more reports by then, and pruners that count rungs would not repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.model.facts import Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ruling
from sweep.search.attributes import STOPPED
from sweep.search.curves import Curves
from sweep.search.open_trial import OpenTrial
from sweep.search.ranking import Ranking
from sweep.search.strategy.protocol import CurveStatus, Promotion, Strategy
from trainer.contract import Report

STATUSES = {
    TrialState.RUNNING: CurveStatus.RUNNING,
    TrialState.COMPLETE: CurveStatus.COMPLETE,
    TrialState.PRUNED: CurveStatus.PRUNED,
    TrialState.FAIL: CurveStatus.FAILED,
}


def optuna_pruner(pruner: optuna.pruners.BasePruner | Strategy) -> optuna.pruners.BasePruner:
    """The pruner that the Optuna study is given: a strategy of ours is none."""
    return pruner if isinstance(pruner, optuna.pruners.BasePruner) else optuna.pruners.NopPruner()


class TrialJudge:
    """Keeps the reports of a study's trials, and gives the verdicts on them.

    Args:
        pruner: a pruner of Optuna, which only stops; or a strategy of ours, which may also pause and promote.
        objective: what a pruner of Optuna is shown.
        milestones: the number of reports of a trial that runs to its end.
    """

    def __init__(self, pruner: optuna.pruners.BasePruner | Strategy, objective: Objective, milestones: int) -> None:
        self._curves = None if isinstance(pruner, optuna.pruners.BasePruner) else Curves(pruner, milestones)
        self._pruner = optuna_pruner(pruner)
        self._objective = objective
        self._ranking = Ranking(objective)

    @property
    def can_pause(self) -> bool:
        """Whether verdicts may pause trials."""
        return self._curves is not None

    def load(self, trial: FrozenTrial) -> None:
        """Add the stored values of a trial to those by which the reason of a pruner's verdict ranks a trial."""
        self._ranking.add_all(trial.intermediate_values)

    def begin(self, number: int, params: Mapping[str, Any], state: TrialState = TrialState.RUNNING) -> None:
        """Add a trial to the curves, without reports."""
        if self._curves is not None:
            self._curves.begin(number, params, STATUSES[state])

    def end(self, number: int, state: TrialState) -> None:
        """Note in which state a trial has ended."""
        if self._curves is not None:
            self._curves.set_status(number, STATUSES[state])

    def restore_pause(self, trial: OpenTrial, reason: str) -> bool:
        """Pause a trial as an earlier controller did, unless a promotion has ended that; returns whether it is paused.

        Does nothing if verdicts cannot pause trials, or if the trial has a verdict.
        """
        last = max(trial.values, default=0)
        promoted_since = trial.promoted_at is not None and trial.promoted_at >= last
        if trial.verdict is not None or self._curves is None or promoted_since:
            return False
        trial.verdict = Verdict(last, trial.values.get(last, math.nan), reason, Ruling.PAUSE)
        self._curves.set_status(trial.number, CurveStatus.PAUSED)
        return True

    def add(self, trial: OpenTrial, report: Report, worker: str) -> bool:
        """Store a report of an open trial without judging it; False if it was stored before, or has no finite value."""
        value = self.value(report)
        if report.final:
            trial.objective = value
        if not math.isfinite(value):
            return False
        if not trial.final:
            self.add_to_curve(trial.number, report, worker)
        if report.milestone in trial.values:
            return False
        trial.trial.report(value, report.milestone)
        trial.values[report.milestone] = value
        self._ranking.add(report.milestone, value)
        return True

    def value(self, report: Report) -> float:
        """The objective in a report, as it was measured; NaN if the report has none."""
        return report.value(self._objective.name)

    def add_to_curve(self, number: int, report: Report, worker: str = "") -> None:
        """Add a report to the curve of a trial; see `Curves.add`."""
        if self._curves is not None:
            self._curves.add(number, report, worker)

    def judge(self, trial: OpenTrial, report: Report, new_allowed: bool) -> Verdict | None:
        """Give and keep the verdict on the newest report of a trial; None: the trial continues.

        Args:
            new_allowed: the budget allows a new trial in place of this one.
        """
        if self._curves is not None:
            trial.verdict = self._curves.verdict(trial.number, new_allowed)
            if trial.verdict is not None and trial.verdict.ruling is Ruling.STOP:
                trial.trial.set_user_attr(STOPPED, trial.verdict.to_json())
        # NopPruner is not called: Optuna would copy the trial for it
        elif not isinstance(self._pruner, optuna.pruners.NopPruner) and trial.trial.should_prune():
            name = type(self._pruner).__name__
            trial.verdict = self._ranking.stop_verdict(name, report.milestone, self.value(report))
            trial.trial.set_user_attr(STOPPED, trial.verdict.to_json())
        return trial.verdict

    def promote(self, new_allowed: bool, worker: str) -> Promotion | None:
        """The strategy's choice among the paused trials; see `Curves.promote`."""
        return self._curves.promote(new_allowed, worker) if self._curves is not None else None

    def trials_without_reports(self) -> Sequence[int]:
        """Ended trials whose reports the strategy lacks."""
        return self._curves.without_reports() if self._curves is not None else ()
