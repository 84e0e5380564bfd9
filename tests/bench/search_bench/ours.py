"""Our sampler and strategies as methods of the replay, as the controller drives them: a free worker trains what the
strategy promotes, else what the sampler proposes; a paused trial is shown to the sampler as pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import optuna

from sweep.model.facts import Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ruling
from sweep.search.forecast_sampler import ForecastSampler
from sweep.search.history import History
from sweep.search.optuna_private import filtered, stored_trial
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Curve, CurveStatus, Strategy
from tests.bench.search_bench.optuna_arms import suggest
from tests.bench.search_bench.replay import Decision, Job
from tests.bench.search_bench.tables import Table
from trainer.contract import Report

Arm = Callable[[Table, int], "OurMethod"]


class OurMethod:
    """A study whose trials pause and are promoted."""

    def __init__(self, table: Table, sampler: optuna.samplers.BaseSampler, strategy: Strategy) -> None:
        self._table, self._strategy = table, strategy
        self._study = filtered(optuna.create_study(sampler=sampler), sampler)
        self._history = History(None, Objective("val_loss"))
        self.last: Verdict | None = None
        self._open: dict[int, optuna.Trial] = {}
        self._curves: dict[int, Curve] = {}

    def next(self, worker: str) -> Job | None:
        promotion = self._strategy.promote(self._curves, self._table.milestones, worker)
        if promotion is not None:
            self._set_status(promotion.trial, CurveStatus.RUNNING)
            return Job(promotion.trial, self._curves[promotion.trial].params, self._table.milestones)
        self._study.view = self._history.view
        trial = self._study.ask()
        params = suggest(trial, self._table)
        self._study.view = None
        self._open[trial.number] = trial
        self._curves[trial.number] = Curve(trial.number, params, (), CurveStatus.RUNNING)
        self._history.add_running(self._frozen(trial.number))
        return Job(trial.number, params, self._table.milestones)

    def report(self, trial: int, report: Report, worker: str) -> Decision:
        assert report.val_loss is not None
        self._open[trial].report(report.val_loss, report.milestone)
        curve = self._curves[trial]
        self._curves[trial] = replace(curve, reports=(*curve.reports, report), worker=worker)
        if report.final:
            self._study.tell(self._open[trial], report.val_loss)
            return self._set_status(trial, CurveStatus.COMPLETE)
        self.last = verdict = self._strategy.verdict(trial, self._curves, self._table.milestones)
        if verdict is None:
            return self._set_status(trial, CurveStatus.RUNNING)
        if verdict.ruling is Ruling.STOP:
            self._study.tell(self._open[trial], state=optuna.trial.TrialState.PRUNED)
            return self._set_status(trial, CurveStatus.PRUNED)
        return self._set_status(trial, CurveStatus.PAUSED)

    def _set_status(self, trial: int, status: CurveStatus) -> Decision:
        self._curves[trial] = replace(self._curves[trial], status=status)
        frozen = self._frozen(trial)
        match status:
            case CurveStatus.RUNNING:
                self._history.add_running(frozen)
                return Decision.GO_ON
            case CurveStatus.PAUSED:
                self._history.add_paused(frozen)
                return Decision.PAUSE
            case _:
                self._history.add_ended(frozen)
                return Decision.STOP if status is CurveStatus.PRUNED else Decision.GO_ON

    def _frozen(self, trial: int) -> optuna.trial.FrozenTrial:
        return stored_trial(self._study, self._open[trial])


def our_arms() -> dict[str, Arm]:
    """The arms by name; each makes a method from a table and a seed."""
    last = 24

    def made(grad_norm: bool) -> Arm:
        return lambda table, seed: OurMethod(
            table, ForecastSampler(last, seed=seed), FreezeThaw("val_loss", grad_norm=grad_norm)
        )

    def asha(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Arm:
        return lambda table, seed: OurMethod(table, sampler(seed), AsynchronousHalving("val_loss", 1, 4))

    return {
        "ours": made(True),
        "ours (loss alone)": made(False),
        "tpe+asha with promotion": asha(lambda seed: optuna.samplers.TPESampler(seed=seed)),
        "forecast+asha with promotion": asha(lambda seed: ForecastSampler(last, seed=seed)),
        "tpe+freeze-thaw": lambda table, seed: OurMethod(
            table, optuna.samplers.TPESampler(seed=seed), FreezeThaw("val_loss")
        ),
    }
